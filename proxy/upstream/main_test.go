package upstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"nixbastion/internal/nix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a pool with one fake builder, b1, in a synctest bubble: its time is
// virtual, and every test also shows that no goroutine is left.
type world struct {
	*testing.T
	fake *fakeBuilder
	pool *Pool

	mu     sync.Mutex
	states []string // what OnState said
}

// inWorld runs a test. Prepare changes the fake, the target and the options
// before anything is dialled; it may be nil.
func inWorld(t *testing.T, prepare func(*fakeBuilder, *target, *Options), test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, fake: newFakeBuilder(t)}
		tgt, opts := w.fake.target(), Options{Dial: w.fake.dial, OnState: w.onState}
		if prepare != nil {
			prepare(w.fake, tgt, &opts)
		}
		w.pool = NewPool(opts)
		w.pool.update([]*target{tgt})
		defer w.stop()
		test(w)
	})
}

// stop ends everything at once, also after a failure.
func (w *world) stop() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.pool.Close(ctx)
	w.fake.mu.Lock()
	conns := slices.Clone(w.fake.conns)
	w.fake.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	w.fake.done.Wait()
}

func (w *world) onState(builder string, up bool, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	state := "down: " + reason
	if up {
		state = "up"
	}
	w.states = append(w.states, builder+" "+state)
}

func (w *world) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.states, "\n")
}

func (w *world) get() *Session {
	w.Helper()
	s, err := w.pool.Get(w.Context(), "b1")
	if err != nil {
		w.Fatalf("get: %v", err)
	}
	return s
}

// refused expects that no session is to be had, for a reason of some kind whose
// text has all of words.
func (w *world) refused(kind Kind, words ...string) *Error {
	w.Helper()
	s, err := w.pool.Get(w.Context(), "b1")
	if err == nil {
		s.Release()
		w.Fatalf("got a session, want an error of kind %q", kind)
	}
	return w.isFault(err, kind, words...)
}

func (w *world) isFault(err error, kind Kind, words ...string) *Error {
	w.Helper()
	var fault *Error
	if !errors.As(err, &fault) {
		w.Fatalf("error is %v, want an *Error", err)
	}
	if fault.Kind != kind || fault.Builder != "b1" || !Broken(err) {
		w.Errorf("fault of kind %q of builder %q (broken: %t), want %q of b1: %v", fault.Kind, fault.Builder, Broken(err), kind, err)
	}
	for _, word := range append(words, "b1") {
		if !strings.Contains(err.Error(), word) {
			w.Errorf("error does not say %q: %v", word, err)
		}
	}
	return fault
}

// works shows that a session is usable.
func (w *world) works(s *Session) {
	w.Helper()
	if _, err := s.QueryValidPaths(w.Context(), nil, false); err != nil {
		w.Errorf("query: %v", err)
	}
}

func (w *world) count(what *int) int {
	w.fake.mu.Lock()
	defer w.fake.mu.Unlock()
	return *what
}

// somePaths makes n store paths.
func somePaths(n int) []nix.StorePath {
	paths := make([]nix.StorePath, n)
	for i := range paths {
		path, err := nix.ParseStorePath(fmt.Sprintf("/nix/store/%032d-some", i))
		if err != nil {
			panic(err)
		}
		paths[i] = path
	}
	return paths
}
