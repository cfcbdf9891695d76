package testbed

import (
	"context"
	"log/slog"
	"testing"
)

// ForTest makes a bed that ends with the test, and fails the test where that
// is not possible: never a skip, since then nothing was shown.
func ForTest(t testing.TB) *Bed {
	t.Helper()
	b, err := New(t.Context(), Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close bed: %v", err)
		}
	})
	return b
}

// MustStart starts hosts at once and fails the test if one does not come up.
func (b *Bed) MustStart(t testing.TB, specs ...HostSpec) []*Host {
	t.Helper()
	hosts, err := b.StartAll(t.Context(), specs...)
	if err != nil {
		t.Fatal(err)
	}
	return hosts
}

// MustShell runs a script on the host as root, fails the test unless it ends
// with status 0, and returns its standard output.
func (h *Host) MustShell(t testing.TB, script string) string {
	t.Helper()
	return h.mustShell(t.Context(), t, script)
}

func (h *Host) mustShell(ctx context.Context, t testing.TB, script string) string {
	t.Helper()
	res, err := h.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	if res.Status != 0 {
		t.Fatalf("%s: %q ended with status %d\n%s%s", h.spec.Name, script, res.Status, res.Stdout, res.Stderr)
	}
	return res.Stdout
}
