package proxy

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
)

// A deserted is a build whose clients come and go, and the table that it runs in.
// It runs until it is cancelled or let go.
type deserted struct {
	*testing.T
	table *inflight
	letGo chan struct{}

	mu    sync.Mutex // guards what follows
	cause error      // of the last end
	// released counts what was given back of what builds need while nobody waits.
	released int
}

func inDeserted(t *testing.T, test func(d *deserted)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &deserted{T: t, table: newInflight(), letGo: make(chan struct{})}
		test(d)
		d.table.cancelAll(errShutdown)
		if n := len(d.table.running) + len(d.table.lingering); n != 0 {
			t.Errorf("%d entries are left behind", n)
		}
	})
}

func (d *deserted) join(key byte) (*build, joined) {
	return d.table.join(d.Context(), buildKey{key}, newBuildLog(d.TempDir(), 0), func(ctx context.Context, b *build) (*nix.BuildResult, error) {
		nix.Line(b.log, "first line")
		select {
		case <-ctx.Done():
			d.note(func() { d.cause = context.Cause(ctx) })
			return nil, context.Cause(ctx)
		case <-d.letGo:
			return &nix.BuildResult{Status: nix.StatusBuilt}, nil
		}
	})
}

func (d *deserted) note(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// ended is why the last build that was cancelled was, once all is quiet.
func (d *deserted) ended() error {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cause
}

func (d *deserted) wantReleased(n int) {
	d.Helper()
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.released != n {
		d.Errorf("given back %d times, want %d", d.released, n)
	}
}

// lose has the client of a build lost.
func (d *deserted) lose(key byte, b *build, limit time.Duration) bool {
	l := &lingering{principal: "alice", limit: limit, release: func() { d.note(func() { d.released++ }) }}
	return d.table.lose(buildKey{key}, b, l)
}

// Guards against a laptop that changes its network and has to build all over again.
func TestALostClientFindsItsBuildAgain(t *testing.T) {
	inDeserted(t, func(d *deserted) {
		b, _ := d.join(1)
		if !d.lose(1, b, time.Minute) {
			d.Error("the build does not linger")
		}
		time.Sleep(59 * time.Second)
		again, how := d.join(1)
		if again != b || how != joinedAgain {
			d.Fatalf("the client that comes back got another build (%v)", how)
		}
		time.Sleep(time.Hour) // it waits now, so that no time runs out
		close(d.letGo)
		var log lines
		if result, err := again.wait(d.Context(), &log, 0); err != nil || result.Status != nix.StatusBuilt {
			d.Errorf("wait = %v, %v", result, err)
		}
		if log.String() != "first line\n\n" {
			d.Errorf("the log is %q", &log)
		}
		d.table.leave(buildKey{1}, again)
		d.wantReleased(1)
	})
}

// Guards against builds that run on for hours for nobody.
func TestALingeringBuildEndsWhenItsTimeIsUp(t *testing.T) {
	inDeserted(t, func(d *deserted) {
		b, _ := d.join(1)
		d.lose(1, b, time.Minute)
		time.Sleep(time.Minute - time.Millisecond)
		if err := d.ended(); err != nil {
			d.Fatalf("it ended early: %v", err)
		}
		time.Sleep(time.Millisecond)
		if err := d.ended(); !errors.Is(err, errNobodyWaits) {
			d.Errorf("its end is %v", err)
		}
		d.wantReleased(1)
		if _, how := d.join(1); how != joinedFirst {
			d.Error("a new request joined a build that was given up")
		}
	})
}

// Guards against lingering where others wait, where it is switched off, and beyond
// its bound; and against builds that linger though their last client left by its
// own will.
func TestWhatDoesNotLinger(t *testing.T) {
	inDeserted(t, func(d *deserted) {
		b, _ := d.join(1)
		d.join(1)
		if d.lose(1, b, time.Minute) {
			d.Error("it lingers while somebody waits")
		}
		d.table.leave(buildKey{1}, b)
		if err := d.ended(); !errors.Is(err, errNobodyWaits) {
			d.Errorf("after the last client left by its own will the build's end is %v", err)
		}
		b, _ = d.join(2)
		if d.lose(2, b, 0) {
			d.Error("it lingers, which is switched off")
		}
		for key := range byte(maxLingering) {
			b, _ := d.join(10 + key)
			if !d.lose(10+key, b, time.Minute) {
				d.Errorf("build %d does not linger", key)
			}
		}
		b, _ = d.join(3)
		if d.lose(3, b, time.Minute) {
			d.Error("one more than allowed lingers")
		}
		b, _ = d.join(10) // makes room for one
		b3, _ := d.join(3)
		if !d.lose(3, b3, time.Minute) {
			d.Error("the place of a build that was found again is not free")
		}
		d.table.leave(buildKey{10}, b)
	})
}

// Guards against a build that ends while nobody waits and is kept, or counted, for
// ever.
func TestALingeringBuildThatIsDoneIsForgotten(t *testing.T) {
	inDeserted(t, func(d *deserted) {
		b, _ := d.join(1)
		d.lose(1, b, time.Minute)
		close(d.letGo)
		d.wantReleased(1)
		if len(d.table.running) != 0 || len(d.table.lingering) != 0 {
			d.Errorf("running %v, lingering %v", d.table.running, d.table.lingering)
		}
		if !b.log.closed || b.log.tail != nil {
			d.Error("its log is kept")
		}
	})
}

// A proxy that is told that a client was lost lets its build end and keeps what was
// built; the client that comes back is answered. Guards against results that are
// thrown away since nobody waits.
func TestWhatALostClientHadBuiltIsKept(t *testing.T) {
	b1 := newLabBuilder("b1")
	release := make(chan struct{})
	b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		select {
		case <-release:
			return makeOutputs(ctx, b, log, drv)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l := newLab(t, b1)
	lost := l.client("alice")
	go lost.build(t.Context(), nix.Discard, "kept")
	eventually(t, "the build runs", func() bool { return len(b1.built()) == 1 })
	lost.lost.Store(true)
	lost.hangUp()
	lost.served <- <-lost.served // it has ended
	close(release)
	again := l.client("alice")
	result, err := again.build(t.Context(), nix.Discard, "kept")
	if err != nil || !result.Status.Success() {
		t.Fatalf("result %+v, %v", result, err)
	}
	if got, err := again.read(t.Context(), labPath("kept")); err != nil || got != "built by b1" {
		t.Errorf("read %q, %v", got, err)
	}
	if n := len(b1.built()); n != 1 {
		t.Errorf("it was built %d times", n)
	}
}

// Guards against a place in the queue that is held for a client who has left.
func TestWhoLeavesHoldsNothing(t *testing.T) {
	b1 := newLabBuilder("b1")
	release := make(chan struct{})
	b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		<-release
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLab(t, b1)
	defer close(release)
	go l.client("alice").build(t.Context(), nix.Discard, "first")
	eventually(t, "the first build runs", func() bool { return len(b1.built()) == 1 })
	bob := l.client("bob")
	go bob.build(t.Context(), nix.Discard, "second")
	eventually(t, "the second waits", func() bool { return len(l.proxy.router.Status().Queue) == 1 })
	bob.hangUp()
	eventually(t, "the queue is empty", func() bool { return len(l.proxy.router.Status().Queue) == 0 })
}
