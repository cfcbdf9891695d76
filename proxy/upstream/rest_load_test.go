package upstream

import (
	"testing"
	"testing/synctest"
	"time"
)

// Guards against a question for its load that keeps a builder awake, or a connection
// to one that is to be switched off open, and against one that is never asked again.
func TestRestingBuilderIsNotAskedForItsLoad(t *testing.T) {
	for name, c := range map[string]struct {
		rest func(w *loadWorld) bool
		back func(w *loadWorld) error
	}{
		"asleep": {
			func(w *loadWorld) bool { return w.pool.Sleep(w.Context(), "b1", time.Minute) },
			func(w *loadWorld) error { return w.pool.Reach(w.Context(), "b1") },
		},
		"leaving": {
			func(w *loadWorld) bool { w.pool.SetLeaving("b1", true); return true },
			func(w *loadWorld) error { w.pool.SetLeaving("b1", false); return nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			inLoadWorld(t, loadProgram(steadyLoad), nil, func(w *loadWorld) {
				w.use()
				time.Sleep(2 * time.Minute)
				w.knows(1.5)
				if !c.rest(w) {
					w.Fatal("it does not rest")
				}
				synctest.Wait()
				dialled := w.count(&w.fake.dialled)
				moved := w.fake.target()
				moved.address = "b1.example.net:22"
				w.pool.update([]*target{moved})
				time.Sleep(time.Hour)
				if n := w.count(&w.fake.dialled) - dialled; n != 0 || len(w.fake.conns) != 0 {
					w.Errorf("dialled %d times, %d connections are left", n, len(w.fake.conns))
				}
				w.knowsNot("is not asked")
				if err := c.back(w); err != nil {
					w.Fatal(err)
				}
				time.Sleep(time.Minute)
				w.knows(1.5)
			})
		})
	}
}
