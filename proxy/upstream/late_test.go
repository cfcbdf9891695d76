package upstream

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
)

// lateAfter polls as the user of a session does while it builds, until the builder
// is late for so long or limit is over, and returns how long that took.
func lateAfter(s *Session, late, limit time.Duration) time.Duration {
	const poll = 3 * time.Second
	started := time.Now()
	for time.Since(started) < limit && s.Late() < late {
		time.Sleep(poll)
	}
	return time.Since(started)
}

// building starts a build that ends with the session, and returns when it runs.
func (w *world) building(s *Session) {
	w.Helper()
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(w.Context())
	go func() {
		defer close(done)
		s.BuildDerivation(ctx, nix.Discard, somePaths(1)[0], &nix.BasicDerivation{}, nix.BuildNormal)
	}()
	w.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
}

// Guards against builds that hang with their machine until keep-alive gives the
// connection up, which takes more than a minute.
func TestBuilderThatDoesNotAnswerIsLate(t *testing.T) {
	// Keep-alive asks at every other turn.
	for _, before := range []time.Duration{time.Hour, time.Hour + 15*time.Second} {
		inWorld(t, nil, func(w *world) {
			s := w.get()
			defer s.Close()
			w.building(s)
			time.Sleep(before)
			w.fake.conn().pause() // what is sent still gets there, as to a machine that is stopped
			if took := lateAfter(s, 20*time.Second, time.Hour); took > 30*time.Second {
				w.Errorf("known after %s", took)
			}
		})
	}
}

// Guards against a build that is copied since it prints nothing for hours.
func TestSilentBuildIsNotLate(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		defer s.Close()
		w.building(s)
		if took := lateAfter(s, time.Second, 10*time.Hour); took < 10*time.Hour {
			w.Errorf("late after %s", took)
		}
	})
}

// Guards against a builder that counts as late for ever since it once was.
func TestAnyByteEndsLateness(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		defer s.Close()
		w.building(s)
		w.fake.conn().pause()
		lateAfter(s, 20*time.Second, time.Minute)
		w.fake.conn().resume()
		synctest.Wait()
		if late := s.Late(); late != 0 {
			w.Errorf("still late by %s", late)
		}
	})
}

// Guards against builds that are sent to a machine that hangs, and against one that
// stays down although it has come back.
func TestHungBuilderIsDownUntilItAnswers(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, opts *Options) {
		opts.BackOffMin, opts.BackOffMax = 10*time.Second, 10*time.Second
	}, func(w *world) {
		s := w.get()
		defer s.Close()
		w.building(s)
		w.fake.conn().pause()
		w.isFault(s.Hung(20*time.Second), Hung, "no sign of life for 20s")
		if got := w.said(); got != "b1 down: no sign of life for 20s" {
			w.Errorf("said %q", got)
		}
		w.refused(Hung)
		time.Sleep(15 * time.Second) // a new connection is answered
		w.works(w.get())
		if got := w.said(); got != "b1 down: no sign of life for 20s\nb1 up" {
			w.Errorf("said %q", got)
		}
	})
}

// Guards against a builder that is blamed for a connection that died while nobody
// used it.
func TestSessionThatDiedWhileItWaitedIsStale(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.get().Release()
		time.Sleep(500 * time.Millisecond) // too short for a proof
		s := w.get()
		w.fake.conn().Close()
		err := s.AddTempRoots(w.Context(), somePaths(1))
		w.isFault(err, Lost)
		if !s.Stale() {
			w.Error("not stale, though nothing was heard since it was taken")
		}
		s.Close()
	})
}

// Guards against a builder that loses builds and is never blamed.
func TestSessionThatWasUsedIsNotStale(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		fresh := w.get()
		w.fake.conn().Close()
		w.isFault(fresh.AddTempRoots(w.Context(), somePaths(1)), Lost)
		if fresh.Stale() {
			w.Error("a session that never waited is stale")
		}
		fresh.Close()
		w.get().Release()
		used := w.get()
		w.works(used)
		w.fake.conn().Close()
		w.isFault(used.AddTempRoots(w.Context(), somePaths(1)), Lost)
		if used.Stale() {
			w.Error("a session that was answered is stale")
		}
		used.Close()
	})
}
