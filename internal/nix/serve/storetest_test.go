package serve

import (
	"context"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
)

// redialled is a client that dials again where a refusal ended its session, as
// whoever owns the connection must.
type redialled struct {
	*served
	t    *testing.T
	dial func() *served
}

func (r *redialled) AddMultipleToStore(ctx context.Context, log nix.Logger, src nix.PathSource, opts nix.AddOptions) error {
	err := r.served.AddMultipleToStore(ctx, log, src, opts)
	if err == nil {
		return nil
	}
	if r.Reusable() {
		r.t.Errorf("session is reusable after %v", err)
	}
	r.served = r.dial()
	return err
}

// Guards against a promise of a store that is lost between client and server: at
// every version that tells the hashes of NARs, a store behind the protocol is as
// good as the store itself, as far as it has words.
func TestAStoreBehindTheProtocolIsAStore(t *testing.T) {
	for v := sinceAddToStoreNar; v <= Latest; v++ {
		t.Run(v.String(), func(t *testing.T) {
			storetest.Run(t, storetest.World{NamedOnly: true, Open: func(t *testing.T) nix.Store {
				store := storetest.NewMemory()
				clientOpts, serverOpts := at(v)
				dial := func() *served { return dial(t, store, clientOpts, serverOpts) }
				return &redialled{served: dial(), t: t, dial: dial}
			}})
		})
	}
}
