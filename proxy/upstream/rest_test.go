package upstream

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Guards against connections that keep a drained builder from being switched off, and
// against builds there that are cut off.
func TestLeavingBuilderIsLeftWithItsLastUser(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) { opts.Inventory = time.Minute }, func(w *world) {
		building := w.get()
		w.get().Release() // and waits idle
		w.pool.SetLeaving("b1", true)
		synctest.Wait()
		w.works(building)
		started := len(w.fake.commands)
		second := w.get()
		synctest.Wait()
		if n := len(w.fake.commands) - started; n != 1 {
			w.Errorf("%d sessions were opened for one user", n)
		}
		w.works(second)
		second.Release()
		building.Release()
		synctest.Wait()
		if n := len(w.fake.conns); n != 0 {
			w.Errorf("%d connections are left", n)
		}
		w.get().Release()
		synctest.Wait()
		dialled := w.count(&w.fake.dialled)
		time.Sleep(time.Hour)
		if n := len(w.fake.conns); n != 0 || w.count(&w.fake.dialled) != dialled {
			w.Errorf("%d connections are left after another session, and %d more were dialled", n, w.count(&w.fake.dialled)-dialled)
		}
		w.pool.SetLeaving("b1", false)
		w.get().Release()
		synctest.Wait()
		if n := len(w.fake.conns); n == 0 {
			w.Error("no connection is kept afterwards")
		}
	})
}

// Guards against a machine that is being repaired and dialled all the time, and
// against one that stays down when it is back.
func TestLeavingBuilderIsNotTriedByItself(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) { f.unreachable = errors.New("no route") }, func(w *world) {
		w.refused(Unreachable)
		w.pool.SetLeaving("b1", true)
		tries := w.count(&w.fake.dialled)
		time.Sleep(time.Hour)
		if n := w.count(&w.fake.dialled) - tries; n != 0 {
			w.Errorf("dialled %d times", n)
		}
		w.fake.set(func() { w.fake.unreachable = nil })
		w.pool.SetLeaving("b1", false)
		synctest.Wait()
		if got := w.said(); got != "b1 down: no route\nb1 up" {
			w.Errorf("said %q", got)
		}
	})
}

// Guards against a builder that is put to sleep under a user, or with connections
// that are then lost, and against one that is woken by whatever looks at it.
func TestSleepingBuilderHasNoUserAndIsAskedForNothing(t *testing.T) {
	inWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) { opts.Inventory = time.Minute }, func(w *world) {
		s := w.get()
		time.Sleep(time.Hour)
		if w.pool.Idle("b1") != 0 || w.pool.Sleep(w.Context(), "b1", time.Minute) {
			w.Error("put to sleep with a user")
		}
		s.Release()
		if w.pool.Sleep(w.Context(), "b1", time.Minute) {
			w.Error("put to sleep at once")
		}
		time.Sleep(time.Minute) // in which the store was listed, which is no use
		if got := w.pool.Idle("b1"); got != time.Minute || !w.pool.Sleep(w.Context(), "b1", time.Minute) {
			w.Errorf("not put to sleep, idle for %s", got)
		}
		synctest.Wait()
		if n := len(w.fake.conns); n != 0 {
			w.Errorf("%d connections are left", n)
		}
		dialled := w.count(&w.fake.dialled)
		w.refused(Unreachable, "is asleep")
		if err := w.pool.Look(w.Context(), "b1"); err == nil {
			w.Error("looked at")
		}
		time.Sleep(time.Hour)
		if n := w.count(&w.fake.dialled) - dialled; n != 0 || !w.pool.Asleep("b1") {
			w.Errorf("dialled %d times", n)
		}
		moved := w.fake.target()
		moved.address = "b1.example.net:22"
		w.pool.update([]*target{moved})
		w.refused(Unreachable, "is asleep")
		if err := w.pool.Reach(w.Context(), "b1"); err != nil || w.pool.Asleep("b1") {
			w.Errorf("not awake: %v", err)
		}
		w.works(w.get())
		if got := w.said(); got != "" {
			w.Errorf("said %q", got)
		}
	})
}

// Guards against a sleeping builder that counts as broken, and one that is woken and
// is not there being taken for up.
func TestUnreachableBuilderMayBeAsleep(t *testing.T) {
	var asleep atomic.Bool
	asleep.Store(true)
	inWorld(t, func(f *fakeBuilder, _ *target, opts *Options) {
		f.unreachable = errors.New("no route")
		opts.Sleeps = func(string) bool { return asleep.Load() }
	}, func(w *world) {
		w.refused(Unreachable, "no route")
		w.refused(Unreachable, "is asleep")
		if err := w.pool.Reach(w.Context(), "b1"); err == nil || !w.pool.Asleep("b1") {
			w.Errorf("reached: %v", err)
		}
		time.Sleep(time.Hour)
		if got, n := w.said(), w.count(&w.fake.dialled); got != "" || n != 2 {
			w.Errorf("said %q, dialled %d times", got, n)
		}
		asleep.Store(false)
		w.pool.Wake("b1")
		w.refused(Unreachable, "no route")
		time.Sleep(time.Minute)
		asleep.Store(true)
		time.Sleep(time.Hour)
		if got := w.said(); got != "b1 down: no route" || !w.pool.Asleep("b1") {
			w.Errorf("said %q", got)
		}
	})
}

// Guards against builds that fail because their builder's address was changed while
// they waited for a session there.
func TestSessionComesFromTheNewWay(t *testing.T) {
	inWorld(t, func(f *fakeBuilder, tgt *target, opts *Options) {
		tgt.maxJobs = 1
		opts.Channels = 1
	}, func(w *world) {
		var held []*Session
		for range 2*1 + 4 { // all that a builder with one slot has
			held = append(held, w.get())
		}
		got := make(chan error, 1)
		go func() {
			s, err := w.pool.Get(w.Context(), "b1")
			if err == nil {
				s.Release()
			}
			got <- err
		}()
		synctest.Wait()
		moved := w.fake.target()
		moved.address = "b1.example.net:22"
		w.pool.update([]*target{moved})
		if err := <-got; err != nil {
			w.Errorf("who waited for a session: %v", err)
		}
		for _, s := range held {
			w.works(s)
			s.Release()
		}
		w.pool.update(nil)
		var fault *Error
		if _, err := w.pool.Get(context.Background(), "b1"); !errors.As(err, &fault) || !errors.Is(err, errUnknown) {
			w.Errorf("a removed builder: %v", err)
		}
	})
}
