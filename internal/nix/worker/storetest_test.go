package worker

import (
	"context"
	"io"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
)

// Guards against a promise of a store that is lost between client and server: at
// every version, a store behind the protocol is as good as the store itself.
func TestAStoreBehindTheProtocolIsAStore(t *testing.T) {
	for name, opts := range dialects() {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, storetest.World{
				FlatIsNAR: opts.Version != 0 && opts.Version < sinceContentMethod,
				Open: func(t *testing.T) nix.Store {
					store := storetest.NewMemory()
					open := func() *served {
						return dial(t, store, opts, ServeOptions{Trust: nix.Trusted, Features: allFeatures})
					}
					return &reopened{open(), open}
				},
			})
		})
	}
}

// reopened has a new session after an error instead of a NAR, which ends those of
// older clients.
type reopened struct {
	*served
	open func() *served
}

func (r *reopened) NarFromPath(ctx context.Context, path nix.StorePath) (io.ReadCloser, error) {
	nar, err := r.served.NarFromPath(ctx, path)
	if err != nil && r.Version() < sinceNarErrors {
		r.served = r.open()
	}
	return nar, err
}
