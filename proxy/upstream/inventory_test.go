package upstream

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// listedStore is a store that can be listed.
type listedStore struct {
	fakeStore
	mu    sync.Mutex // guards what follows
	held  []nix.StorePath
	asked int
	// stuck makes a question wait until the client is gone.
	stuck bool
}

func (s *listedStore) QueryAllValidPaths(ctx context.Context) ([]nix.StorePath, error) {
	s.mu.Lock()
	s.asked++
	held, stuck := slices.Clone(s.held), s.stuck
	s.mu.Unlock()
	if stuck {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return held, nil
}

func (s *listedStore) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *listedStore) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// inListedWorld is inWorld with a builder whose store is listed every five
// minutes. Prepare may be nil.
func inListedWorld(t *testing.T, prepare func(*fakeBuilder, *target, *Options), test func(w *world, store *listedStore)) {
	store := &listedStore{held: somePaths(10)}
	inWorld(t, func(f *fakeBuilder, tgt *target, opts *Options) {
		f.programs[daemonCommand] = daemonOf(store, worker.ServeOptions{})
		opts.Inventory = 5 * time.Minute
		if prepare != nil {
			prepare(f, tgt, opts)
		}
	}, func(w *world) { test(w, store) })
}

// Guards against an inventory that is never taken, taken once for ever, or that
// says of a path what is not so.
func TestStoreIsListedWhenItsBuilderIsUpAndNowAndThen(t *testing.T) {
	inListedWorld(t, nil, func(w *world, store *listedStore) {
		paths := somePaths(12)
		time.Sleep(time.Hour)
		if w.pool.Lists("b1", paths[0]) || store.times() != 0 {
			w.Error("a builder was asked that nobody has spoken to")
		}
		w.get().Release()
		synctest.Wait()
		for i, path := range paths {
			if got := w.pool.Lists("b1", path); got != (i < 10) {
				w.Errorf("path %d is listed: %t", i, got)
			}
		}
		if w.pool.Lists("b2", paths[0]) {
			w.Error("a builder that nobody knows lists a path")
		}
		store.set(func() { store.held = paths[10:] })
		time.Sleep(time.Hour)
		if w.pool.Lists("b1", paths[0]) || !w.pool.Lists("b1", paths[11]) {
			w.Error("the list is an hour old")
		}
		if n := store.times(); n < 10 || n > 16 {
			w.Errorf("asked %d times in an hour", n)
		}
	})
}

// Guards against a list from before a builder was away, and against one that is
// forgotten while it is.
func TestStoreIsListedAgainAfterItsBuilderWasDown(t *testing.T) {
	inListedWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) {
		opts.Inventory, opts.IdleSession = 24*time.Hour, time.Second
	}, func(w *world, store *listedStore) {
		paths := somePaths(12)
		w.get().Release()
		synctest.Wait()
		w.fake.set(func() { w.fake.unreachable = errors.New("no route") })
		w.fake.conn().Close()
		time.Sleep(time.Second)
		w.refused(Unreachable)
		if !w.pool.Lists("b1", paths[0]) {
			w.Error("the list went with the builder")
		}
		store.set(func() { store.held = paths })
		w.fake.set(func() { w.fake.unreachable = nil })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if !w.pool.Lists("b1", paths[11]) {
			w.Error("the builder is back and was not asked again")
		}
	})
}

// Guards against a builder that is asked without end, or keeps others from their
// sessions, since it does not answer.
func TestSilentListCostsOneSessionForSomeTime(t *testing.T) {
	inListedWorld(t, nil, func(w *world, store *listedStore) {
		store.stuck = true
		var sessions []*Session
		began := time.Now()
		for range 4 {
			sessions = append(sessions, w.get())
			w.works(sessions[len(sessions)-1])
		}
		if took := time.Since(began); took != 0 {
			w.Errorf("four sessions took %v", took)
		}
		for _, s := range sessions {
			s.Release()
		}
		time.Sleep(inventoryTimeout + time.Minute)
		if n := store.times(); n != 1 {
			w.Errorf("asked %d times", n)
		}
		// What took three minutes is not asked for again before an hour has gone.
		time.Sleep(40 * time.Minute)
		if n := store.times(); n != 1 {
			w.Errorf("asked %d times", n)
		}
	})
}

// Guards against a store so large that its list takes the proxy's memory.
func TestStoreWithTooManyPathsIsNotListed(t *testing.T) {
	var log bytes.Buffer
	inListedWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) {
		opts.InventoryPaths, opts.Log = 9, slog.New(slog.NewTextHandler(&log, nil))
	}, func(w *world, _ *listedStore) {
		s := w.get()
		synctest.Wait()
		if w.pool.Lists("b1", somePaths(1)[0]) {
			w.Error("it is listed")
		}
		w.works(s)
		s.Release()
	})
	if !strings.Contains(log.String(), "a count of at most 9") {
		t.Errorf("the admin is told:\n%s", &log)
	}
}

// Guards against a question that the serve protocol does not have.
func TestStoresOfTheServeProtocolAreNotListed(t *testing.T) {
	var log bytes.Buffer
	inServeWorld(t, func(_ *fakeBuilder, _ *target, opts *Options) {
		opts.Inventory, opts.Log = time.Minute, slog.New(slog.NewTextHandler(&log, nil))
	}, nil, func(w *world) {
		w.get().Release()
		time.Sleep(time.Hour)
		if w.pool.Lists("b1", somePaths(1)[0]) {
			w.Error("it is listed")
		}
	})
	if strings.Contains(log.String(), "listed") {
		t.Errorf("the admin is told:\n%s", &log)
	}
}
