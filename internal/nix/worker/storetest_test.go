package worker

import (
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
					return dial(t, storetest.NewMemory(), opts, ServeOptions{Trust: nix.Trusted, Features: allFeatures})
				},
			})
		})
	}
}
