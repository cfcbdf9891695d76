package proxy

import (
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
)

// Guards against a session that keeps fewer of a store's promises than a builder's
// daemon does.
func TestASessionIsAStore(t *testing.T) {
	storetest.Run(t, storetest.World{Open: func(t *testing.T) nix.Store {
		return newLab(t).client("alice").Client
	}})
}
