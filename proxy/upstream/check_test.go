package upstream

import (
	"testing"
	"testing/synctest"

	"nixbastion/internal/nix"
)

// Guards against a check that reports what an old connection once was.
func TestCheckConnectsAnew(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.get().Release()
		r, err := w.pool.Check(w.Context(), "b1")
		if err != nil {
			w.Fatal(err)
		}
		if r.Nix != "2.34.8" || r.Trust != nix.Trusted || r.Command != daemonCommand || r.Protocol != "1.38" {
			w.Errorf("report: %+v", r)
		}
		synctest.Wait()
		if w.fake.dialled != 2 || len(w.fake.conns) != 1 {
			w.Errorf("dialled %d times, %d connections left", w.fake.dialled, len(w.fake.conns))
		}
		w.fake.set(func() { w.fake.authorized = testKey("other").PublicKey() })
		_, err = w.pool.Check(w.Context(), "b1")
		w.isFault(err, Auth)
		w.works(w.get())
	})
}
