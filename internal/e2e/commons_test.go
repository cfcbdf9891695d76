package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A common is a world that several tests use one after another, since its hosts
// take seconds to come up. The first that asks for it starts it, and TestMain
// ends it. A test leaves it as it found it.
type common[W any] struct {
	once  sync.Once
	world W
	proxy *world.Proxy // nil if the world did not come up
}

// get returns the world; the proxy's log is shown if the test fails. start runs
// at most once, in a bed that lives on after the test.
func (c *common[W]) get(t *testing.T, start func(*testing.T, *testbed.Bed) (W, *world.Proxy)) W {
	t.Helper()
	c.once.Do(func() { c.world, c.proxy = start(t, commonBed(t)) })
	if c.proxy == nil {
		t.Fatal("the world that this test shares with others did not come up")
	}
	mark := c.proxy.Mark()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the proxy:\n%s", tail(logSince(c.proxy, mark)))
		}
	})
	return c.world
}

func logSince(p *world.Proxy, mark int) string {
	var text strings.Builder
	for _, l := range p.LinesSince(mark) {
		fmt.Fprintln(&text, l.Raw)
	}
	return text.String()
}

// commonBeds are those that TestMain closes.
var commonBeds struct {
	mu   sync.Mutex // guards beds
	beds []*testbed.Bed
}

func commonBed(t *testing.T) *testbed.Bed {
	t.Helper()
	bed, err := testbed.New(t.Context(), testbed.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	commonBeds.mu.Lock()
	defer commonBeds.mu.Unlock()
	commonBeds.beds = append(commonBeds.beds, bed)
	return bed
}

func closeCommonBeds() error {
	commonBeds.mu.Lock()
	defer commonBeds.mu.Unlock()
	var errs []error
	for _, bed := range commonBeds.beds {
		errs = append(errs, bed.Close())
	}
	return errors.Join(errs...)
}

// startCommonProxy starts a proxy that lives as long as its bed.
func startCommonProxy(t *testing.T, bed *testbed.Bed, spec world.ProxySpec) *world.Proxy {
	t.Helper()
	p, err := world.StartProxy(t.Context(), bed, spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// withPolicy has a proxy run under another policy until the end of the test.
func withPolicy(t *testing.T, p *world.Proxy, change func(*world.ProxySpec)) {
	t.Helper()
	before := p.Spec()
	changed := before
	changed.Builders, changed.Principals = slices.Clone(before.Builders), slices.Clone(before.Principals)
	change(&changed)
	if err := p.Reload(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience) // the test's own has ended
		defer cancel()
		if err := p.Reload(ctx, before); err != nil {
			t.Error(err)
		}
	})
}
