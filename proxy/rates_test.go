package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// lines collects what a client is told.
type saidLines []string

func (l *saidLines) Log(m nix.LogMessage) { *l = append(*l, m.Text) }

// Guards against a principal that has builds begun as fast as it can ask, against one
// that waits without a word, and against one that waits for what others do.
func TestBuildsBeyondTheRateWaitAndSaySo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &builds{rates: newRates(), refusals: newRefusals(slog.New(slog.DiscardHandler))}
		drv, err := nix.ParseStorePath(nix.StoreDir + "/00000000000000000000000000000000-x.drv")
		if err != nil {
			t.Fatal(err)
		}
		turn := func(name string, log nix.Logger, ctx context.Context) time.Duration {
			start := time.Now()
			s := &session{principal: &policy.Principal{Name: name, BuildsPerMinute: 30}}
			if err := b.awaitTurn(ctx, s, drv, log); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			return time.Since(start)
		}
		var told saidLines
		for range 30 {
			if took := turn("alice", &told, t.Context()); took != 0 {
				t.Fatalf("waited %s within the rate", took)
			}
		}
		if len(told) != 0 {
			t.Errorf("was told %q within the rate", told)
		}
		if took := turn("alice", &told, t.Context()); took != 2*time.Second {
			t.Errorf("waited %s, want 2s", took)
		}
		if want := fmt.Sprintf("waiting 2s with '%s': alice began more than 30 builds a minute (builds_per_minute)", drv); len(told) != 1 || !strings.Contains(told[0], want) {
			t.Errorf("was told %q, want %q", told, want)
		}
		if took := turn("root", &told, t.Context()); took != 0 {
			t.Errorf("another principal waited %s", took)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 { // whoever leaves takes no turn
			turn("alice", &told, gone)
		}
		if took := turn("alice", &told, t.Context()); took > 2*time.Second {
			t.Errorf("waited %s for those who have left", took)
		}
		time.Sleep(1800 * time.Millisecond)
		if turn("alice", &told, t.Context()); !strings.HasPrefix(told[len(told)-1], "waiting 1s with") {
			t.Errorf("was told %q for a moment", told[len(told)-1])
		}
		if n := b.refusals.counts()[DelayedBuild]; n != 103 {
			t.Errorf("%d are counted, want 103", n)
		}
	})
}

// Guards against a rate that a reload does not change.
func TestRateFollowsThePolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRates()
		for range 10 {
			r.of("alice", 10).Allow()
		}
		if r.of("alice", 10).Allow() {
			t.Error("an eleventh of ten was allowed")
		}
		r.of("alice", 6000)
		time.Sleep(50 * time.Millisecond)
		if !r.of("alice", 6000).Allow() {
			t.Error("the old rate counts")
		}
	})
}
