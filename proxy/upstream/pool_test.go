package upstream

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Guards against a builder's sshd that refuses sessions (MaxSessions is 10) and
// connections (MaxStartups) because many builds start at once.
func TestManySessionsShareFewConnections(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, tgt *target, _ *Options) { tgt.maxJobs = 50 }, func(w *world) {
		var all sync.WaitGroup
		sessions := make(chan *Session, 50)
		for range 50 {
			all.Go(func() {
				s, err := w.pool.Get(w.Context(), "b1")
				if err != nil {
					w.Errorf("get: %v", err)
					return
				}
				w.works(s)
				sessions <- s
			})
		}
		all.Wait()
		close(sessions)
		if most := w.count(&w.fake.most); most > 8 {
			w.Errorf("%d sessions on one connection", most)
		}
		if n := w.count(&w.fake.dialled); n > 9 {
			w.Errorf("%d connections for 50 sessions", n)
		}
		for s := range sessions {
			s.Release()
		}
	})
}

// Guards against a process start on the builder for every build.
func TestSessionIsUsedAgain(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		w.works(s)
		s.Release()
		synctest.Wait()
		started := w.count(&w.fake.running)
		for range 10 {
			s := w.get()
			w.works(s)
			s.Release()
		}
		synctest.Wait()
		if n := len(w.fake.commands); n != started || w.fake.dialled != 1 {
			w.Errorf("started %d programs on %d connections, want %d on 1", n, w.fake.dialled, started)
		}
	})
}

// Guards against the next build waiting for a session that could have been
// opened while the first one ran, and against more than one of them.
func TestOneSessionWaitsReady(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		first := w.get()
		synctest.Wait()
		if n := w.count(&w.fake.running); n != 2 {
			w.Errorf("%d programs run beside one user, want 2", n)
		}
		first.Release()
	})
}

// Guards against a build that waits for a place which an idle session holds, up
// to that one's end.
func TestWaiterGetsASessionThatBecomesIdle(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, tgt *target, opts *Options) {
		tgt.maxJobs, opts.Channels = 1, 1
	}, func(w *world) {
		started := time.Now()
		for range 6 { // 2*1+4, of which one is opened in advance at the same time
			w.get()
		}
		if d := time.Since(started); d > time.Second {
			w.Errorf("took %s", d)
		}
	})
}

// Guards against garbage on the builder that cannot be collected because an idle
// session names it, and against connections that nobody uses for ever.
func TestIdleThingsAreClosed(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.get().Release()
		time.Sleep(2*time.Minute + time.Second)
		synctest.Wait()
		if n := w.count(&w.fake.running); n != 0 {
			w.Errorf("%d programs run after the idle time", n)
		}
		time.Sleep(5*time.Minute + time.Second)
		synctest.Wait()
		if n := len(w.fake.conns); n != 0 {
			w.Errorf("%d connections are open after the unused time", n)
		}
	})
}

// Guards against sessions that pin too much on the builder, or for too long.
func TestFullOrOldSessionIsNotUsedAgain(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) { opts.TempRoots = 2 }, func(w *world) {
		full := w.get()
		d := full.d
		if err := full.AddTempRoots(w.Context(), somePaths(2)); err != nil {
			w.Fatal(err)
		}
		full.Release()
		synctest.Wait()
		if !isClosed(d.process.(*remoteProcess).left) {
			w.Error("a session with too many roots was kept")
		}
		old := w.get()
		d = old.d
		time.Sleep(30 * time.Minute)
		old.Release()
		synctest.Wait()
		if !isClosed(d.process.(*remoteProcess).left) {
			w.Error("a session of half an hour was kept")
		}
	})
}

// Guards against one user ending the session of the next by a second Release or
// a late End.
func TestSessionIsGivenBackOnce(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		first := w.get()
		synctest.Wait()
		first.Release()
		second := w.get()
		if first.d != second.d {
			w.Fatal("the session used last is not the next one given")
		}
		first.Release()
		if err := first.End(w.Context()); err != nil {
			w.Error(err)
		}
		w.works(second)
		if third := w.get(); third.d == second.d {
			w.Error("a session has two users")
		}
	})
}

// Guards against a reload that kills builds, and against sessions that go on
// being given out on a builder that was removed.
func TestUpdateLeavesRunningSessionsAlone(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		w.pool.update(nil)
		synctest.Wait()
		if n := w.count(&w.fake.running); n != 1 {
			w.Errorf("%d programs run after the removal, want that in use", n)
		}
		w.refused(Unreachable, "is not configured")
		w.works(s)
		s.Release()
		synctest.Wait()
		if n := len(w.fake.conns); n != 0 {
			w.Errorf("%d connections are left of the removed builder", n)
		}
	})
}

// Guards against a changed address or key that is used only after a restart, and
// against reconnecting because of a change that is none.
func TestUpdateReconnectsOnlyWhereTheWayChanged(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		w.get().Release()
		same := *w.pool.builders["b1"].target
		same.maxJobs = 99
		w.pool.update([]*target{&same})
		w.get().Release()
		if n := w.count(&w.fake.dialled); n != 1 {
			w.Errorf("dialled %d times for the same way", n)
		}
		other := same
		other.user = "other"
		w.pool.update([]*target{&other})
		w.get().Release()
		if n := w.count(&w.fake.dialled); n != 2 {
			w.Errorf("dialled %d times after the account changed, want 2", n)
		}
	})
}

// Guards against a shutdown that cuts transfers which would have ended, and
// against one that waits for ever.
func TestCloseWaitsForUsersUntilItsContextEnds(t *testing.T) {
	inWorld(t, nil, func(w *world) {
		s := w.get()
		var closed error
		done := make(chan struct{})
		go func() {
			ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
			defer cancel()
			closed = w.pool.Close(ctx)
			close(done)
		}()
		time.Sleep(30 * time.Second)
		w.works(s)
		<-done
		if !errors.Is(closed, context.DeadlineExceeded) {
			w.Errorf("closed with a session in use: %v", closed)
		}
		w.isFault(s.AddTempRoots(w.Context(), somePaths(1)), Lost)
		s.Release()
	})
	inWorld(t, nil, func(w *world) {
		s := w.get()
		time.AfterFunc(time.Second, s.Release)
		if err := w.pool.Close(w.Context()); err != nil {
			w.Errorf("closed after the last user: %v", err)
		}
	})
}

// Guards against a get that goes on when its caller has gone, and against a
// builder that is called broken because of that.
func TestGetEndsWithItsContext(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.mute = true }, func(w *world) {
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		_, err := w.pool.Get(ctx, "b1")
		if !errors.Is(err, context.DeadlineExceeded) || Broken(err) {
			w.Errorf("get: %v", err)
		}
		if w.said() != "" {
			w.Errorf("builder is called %s", w.said())
		}
	})
}
