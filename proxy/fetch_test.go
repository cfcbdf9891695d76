package proxy

import (
	"context"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a client that hears of success and then only that its connection
// broke, and against builders that are blamed, one after the other, for a store of
// ours that is full.
func TestOutputsThatDoNotFitAreAFailedBuild(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	for _, b := range []*labBuilder{b1, b2} {
		b.build = func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
			f := newLabFile(drv.Outputs[0].Path, "small")
			f.info.NarSize = 60 << 30 // more than a cache holds by default
			b.put(f)
			return &nix.BuildResult{Status: nix.StatusBuilt}, nil
		}
	}
	l := newLab(t, b1, b2)
	result, err := l.client("alice").build(t.Context(), nix.Discard, "huge")
	if err != nil || result.Status != nix.StatusTransientFailure || !strings.Contains(result.ErrorMsg, "do not fit into the proxy's store") {
		t.Errorf("result %+v, %v", result, err)
	}
	if n := len(b1.built()) + len(b2.built()); n != 1 {
		t.Errorf("built %d times", n)
	}
	if n := len(l.log.records(t, "outputs cannot be stored")); n != 1 {
		t.Errorf("logged %d times:\n%s", n, l.log)
	}
}
