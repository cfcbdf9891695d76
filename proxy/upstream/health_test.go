package upstream

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Guards against a builder that is down being hammered by every build that would
// go there, and against each of them waiting for it.
func TestBuilderThatFailedIsLeftAlone(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, opts *Options) {
		f.unreachable = errors.New("connection refused")
		opts.BackOffMin, opts.BackOffMax = time.Minute, time.Hour
	}, func(w *world) {
		if err := w.refused(Unreachable, "connection refused"); !err.Until.IsZero() {
			w.Errorf("the first error says when it is tried again: %v", err)
		}
		started := time.Now()
		for range 100 {
			if err := w.refused(Unreachable, "connection refused", "tried again at"); !err.Until.After(time.Now()) {
				w.Errorf("tried again at %s", err.Until)
			}
		}
		if d := time.Since(started); d != 0 {
			w.Errorf("waited %s", d)
		}
		if n := w.count(&w.fake.dialled); n != 1 {
			w.Errorf("dialled %d times", n)
		}
		if got := w.said(); got != "b1 down: connection refused" {
			w.Errorf("said %q", got)
		}
	})
}

// Guards against a builder that stays down for ever because nobody sends it
// builds, and against tries that come ever more often.
func TestBuilderThatIsDownIsTriedByItself(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.unreachable = errors.New("no route") }, func(w *world) {
		w.refused(Unreachable)
		time.Sleep(time.Hour)
		tries := w.count(&w.fake.dialled)
		if tries < 40 || tries > 100 {
			w.Errorf("dialled %d times in an hour", tries)
		}
		w.fake.set(func() { w.fake.unreachable = nil })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := w.said(); got != "b1 down: no route\nb1 up" {
			w.Errorf("said %q", got)
		}
		w.works(w.get())
	})
}

// Guards against users and admins who are told of a fault that was mended, while
// another keeps the builder down.
func TestNewReasonForBeingDownIsTold(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.unreachable = errors.New("no route") }, func(w *world) {
		w.refused(Unreachable)
		time.Sleep(10 * time.Minute)
		w.fake.set(func() { w.fake.unreachable = errors.New("connection refused") })
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := w.said(); got != "b1 down: no route\nb1 down: connection refused" {
			w.Errorf("said %q", got)
		}
	})
}

// Guards against a builder that stays down after its way was corrected.
func TestChangedBuilderCountsAsUp(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) { tgt.user = "" }, func(w *world) {
		w.fake.set(func() { w.fake.unreachable = errors.New("no route") })
		w.refused(Unreachable)
		w.fake.set(func() { w.fake.unreachable = nil })
		w.pool.update([]*target{w.fake.target()})
		if got := w.said(); !strings.HasSuffix(got, "\nb1 up") {
			w.Errorf("said %q", got)
		}
		w.works(w.get())
	})
}

// Guards against a half-open connection on which everything waits for ever.
func TestDeadNetworkIsNoticed(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		w.fake.conn().freeze()
		started := time.Now()
		err := s.AddTempRoots(w.Context(), somePaths(1))
		w.isFault(err, Lost, "no sign of life")
		if d := time.Since(started); d > time.Minute+15*time.Second {
			w.Errorf("took %s", d)
		}
	})
}

// Guards against keep-alive that closes a connection whose builder is only
// silent.
func TestQuietNetworkIsLeftAlone(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		time.Sleep(10 * time.Hour)
		w.works(s)
		if n := w.count(&w.fake.dialled); n != 1 {
			w.Errorf("dialled %d times", n)
		}
	})
}

// Guards against a pooled connection that died unnoticed failing a build.
func TestDeadConnectionIsReplaced(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) { opts.IdleSession = time.Second }, func(w *world) {
		w.get().Release()
		time.Sleep(10 * time.Second)
		w.fake.conn().freeze()
		w.works(w.get())
		if w.said() != "" {
			w.Errorf("builder is called %s", w.said())
		}
	})
}

// hangs makes dialling like that to a machine without power: nothing comes back.
func hangs(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Guards against a build that goes out on a connection behind which nobody is any
// more, and is missed only when keep-alive notices.
func TestSilentConnectionProvesItselfBeforeItIsUsed(t *testing.T) {
	for name, idle := range map[string]time.Duration{"with an idle session": 2 * time.Minute, "with none": time.Second} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) { opts.IdleSession = idle }, func(w *world) {
				w.get().Release()
				time.Sleep(10 * time.Second)
				w.fake.conn().freeze()
				started := time.Now()
				w.works(w.get())
				if d := time.Since(started); d > 1500*time.Millisecond {
					w.Errorf("took %s", d)
				}
				if w.said() != "" {
					w.Errorf("builder is called %s", w.said())
				}
			})
		})
	}
}

// Guards against the seconds of each connection and session adding up where the
// machine behind them is gone.
func TestLostMachineIsNoticedWithinSeconds(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, opts *Options) {
		dial := opts.Dial
		opts.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			f.mu.Lock()
			gone := f.unreachable != nil
			f.mu.Unlock()
			if gone {
				return hangs(ctx, network, address)
			}
			return dial(ctx, network, address)
		}
		opts.ConnectTimeout = 3 * time.Second
	}, func(w *world) {
		sessions := []*Session{w.get(), w.get(), w.get()}
		for _, s := range sessions {
			s.Release()
		}
		time.Sleep(10 * time.Second)
		w.fake.set(func() { w.fake.unreachable = errors.New("hangs") })
		w.fake.conn().freeze()
		started := time.Now()
		w.refused(Unreachable, "no connection", "within 3s")
		if d := time.Since(started); d > 4500*time.Millisecond {
			w.Errorf("took %s", d)
		}
		started = time.Now()
		w.refused(Unreachable)
		if d := time.Since(started); d != 0 {
			w.Errorf("the next took %s", d)
		}
	})
}

// Guards against a moment's silence ending what runs, and against a connection
// that is not used again when it is over.
func TestConnectionThatWasSilentIsUsedAgain(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) { opts.UnusedConnection = time.Hour }, func(w *world) {
		held := w.get()
		time.Sleep(10 * time.Second)
		w.fake.conn().pause()
		w.get().Release() // on another connection
		time.Sleep(5 * time.Second)
		w.fake.conn().resume()
		w.works(held)
		var sessions []*Session
		for range w.pool.opts.Channels {
			sessions = append(sessions, w.get())
		}
		if n := w.count(&w.fake.dialled); n != 2 {
			w.Errorf("dialled %d times", n)
		}
		for _, s := range sessions {
			s.Release()
		}
		held.Release()
	})
}
