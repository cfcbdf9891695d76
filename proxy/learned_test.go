package proxy

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a proxy that forgets with every restart how long builds take, and
// against one that does not start since a file of guesses is damaged.
func TestEstimatesOutliveTheProxy(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	l.proxy.learned.keep(ended, l.proxy.router) // as at the end of the proxy

	req := requestBy(l.proxy.policy.Current(), l.principal("alice"), "hello", "x86_64-linux", nil, nil)
	l.restart()
	if d := l.proxy.router.Explain(req); d.Builds != 1 {
		t.Errorf("after a restart %d builds are known:\n%s", d.Builds, d)
	}
	if err := os.WriteFile(l.proxy.learned.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.restart()
	if d := l.proxy.router.Explain(req); d.Builds != 0 {
		t.Errorf("of a damaged file %d builds are known", d.Builds)
	}
}

// restart ends the lab's proxy and makes another one of what it left.
func (l *lab) restart() {
	l.Helper()
	if err := l.proxy.Shutdown(l.Context()); err != nil {
		l.Fatal(err)
	}
	var err error
	if l.proxy, err = New(l.Context(), Options{Policy: l.proxy.policy, Version: "test", Log: slog.New(slog.NewJSONHandler(l.log, nil))}); err != nil {
		l.Fatal(err)
	}
}

// Guards an admin who has mended a builder against waiting for its pause to end.
func TestReloadForgivesFaults(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	for range 8 {
		l.proxy.router.Fault("b1", "it was broken")
	}
	if _, err := l.proxy.Reload("test"); err != nil {
		t.Fatal(err)
	}
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
}
