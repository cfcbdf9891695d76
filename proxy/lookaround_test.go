package proxy

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// Guards against a build that waits for one dead builder after the other before
// its client learns that all are gone.
func TestABuildFailsSoonWhenAllBuildersAreGone(t *testing.T) {
	names := []string{"b1", "b2", "b3", "b4", "b5"}
	var gone []*labBuilder
	for _, name := range names {
		gone = append(gone, newLabBuilder(name))
	}
	l := newLab(t, gone...)
	// Nobody refuses a connection to a machine that is switched off.
	silence := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	pool := upstream.NewPool(upstream.Options{Dial: silence, OnState: l.proxy.router.SetUp, ConnectTimeout: connectTimeout})
	pool.Update(l.proxy.policy.Current().Builders)
	if err := l.proxy.pool.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.proxy.pool, l.proxy.builds.pool = pool, pool
	for _, mode := range []nix.BuildMode{nix.BuildNormal, nix.BuildCheck} {
		began := time.Now()
		result, err := l.client("alice").buildIn(t.Context(), mode, nix.Discard, "out")
		if err != nil || result.Status.Success() {
			t.Fatalf("result %+v, %v", result, err)
		}
		for _, name := range names {
			if !strings.Contains(result.ErrorMsg, name) {
				t.Errorf("%q does not name %s", result.ErrorMsg, name)
			}
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("failed after %v", took)
		}
	}
}

// Guards against a proxy that takes a builder for up until somebody needs it: whoever
// is to be sent away when there is none would stay, and fail.
func TestBuildersAreLookedAtFromTheStart(t *testing.T) {
	away, there := newLabBuilder("away"), newLabBuilder("there")
	l := newLab(t, away, there)
	away.die()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- l.proxy.Serve(ctx, []net.Listener{listener}) }()
	eventually(t, "away is known to be down, and there to be up", func() bool {
		status := l.proxy.router.Status().Builders
		return status[0].Trouble != "" && status[1].Trouble == ""
	})
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
