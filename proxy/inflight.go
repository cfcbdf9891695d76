package proxy

import (
	"context"
	"errors"
	"sync"

	"nixbastion/internal/nix"
)

// errNobodyWaits cancels a build whose last client has gone.
var errNobodyWaits = errors.New("no client waits for this build any more")

// buildKey tells equal builds: the same derivation, whole, from inputs with the
// same bytes, in the same domain, under the same limits.
type buildKey [32]byte

// inflight is the table of builds that run. A build belongs to the proxy, not to
// the client that asked first: equal requests attach to it, and it ends early
// only when nobody waits any more, which lingering (linger.go) can put off.
type inflight struct {
	mu      sync.Mutex
	running map[buildKey]*build
	// lingering counts, by principal, the builds that go on for nobody.
	lingering map[string]int
	wg        sync.WaitGroup
}

func newInflight() *inflight {
	return &inflight{running: map[buildKey]*build{}, lingering: map[string]int{}}
}

// build is one derivation on its way through a builder.
type build struct {
	log    *buildLog
	askers *askers // besides the one who started it
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when result and err are set

	result *nix.BuildResult
	err    error
	// seconds is how long it took at speed 1; 0 if nothing was built.
	seconds float64
	builder string // that has built it, "" if none has
	// kept is called when its clients have the result; nil is nothing. Run sets it.
	kept func()

	// Guarded by inflight.mu:
	waiters int
	over    bool // it is out of the table for good
	linger  *lingering
}

// joined says how a request came to its build.
type joined int

const (
	joinedFirst  joined = iota // it is the one that started the build
	joinedOthers               // others wait for it
	joinedAgain                // its clients were lost, and it went on
)

// text says it to the client, "" where there is nothing to say.
func (j joined) text() string {
	switch j {
	case joinedOthers:
		return "which is being built for somebody else already"
	case joinedAgain:
		return "whose build went on when its client was lost"
	}
	return ""
}

// join attaches to the running build of key, or starts one by run in a goroutine
// of its own. The caller must call leave or lose once.
func (t *inflight) join(ctx context.Context, key buildKey, log *buildLog, run func(context.Context, *build) (*nix.BuildResult, error)) (b *build, how joined) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b, ok := t.running[key]; ok {
		b.waiters++
		if t.stopLingering(b) {
			return b, joinedAgain
		}
		return b, joinedOthers
	}
	runCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	b = &build{log: log, askers: newAskers(), cancel: cancel, done: make(chan struct{}), waiters: 1}
	t.running[key] = b
	t.wg.Go(func() {
		b.result, b.err = run(runCtx, b)
		unread := t.finish(key, b)
		log.finish()
		close(b.done)
		cancel(nil)
		if unread {
			log.free()
		}
		if b.kept != nil {
			b.kept()
		}
	})
	return b, joinedFirst
}

// tellAll says a line to the clients of all builds.
func (t *inflight) tellAll(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.running {
		nix.Line(b.log, text)
	}
}

// finish takes a build that has ended out of the table: later requests start
// anew. It reports whether nobody waits for it.
func (t *inflight) finish(key buildKey, b *build) (unread bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopLingering(b)
	t.forget(key, b)
	b.over = true
	return b.waiters == 0
}

// forget makes later requests start anew. The caller holds mu.
func (t *inflight) forget(key buildKey, b *build) {
	if t.running[key] == b {
		delete(t.running, key)
	}
}

// leave detaches a waiter. The last one cancels the build if it still runs.
func (t *inflight) leave(key buildKey, b *build) {
	if t.detach(key, b, nil) {
		b.log.free()
	}
}

// detach takes a waiter away and reports whether the log is of no more use. The
// last waiter cancels the build, unless stay keeps it.
func (t *inflight) detach(key buildKey, b *build, stay func() bool) (unread bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b.waiters--
	switch {
	case b.waiters > 0:
		return false
	case b.over:
		return true
	case stay == nil || !stay():
		t.giveUp(key, b)
	}
	return false
}

// giveUp cancels a build that nobody waits for. The caller holds mu.
func (t *inflight) giveUp(key buildKey, b *build) {
	b.cancel(errNobodyWaits)
	t.forget(key, b)
}

// kill ends a build with a reason, and reports whether it was still to be ended.
// Later requests start anew.
func (t *inflight) kill(key buildKey, b *build, cause error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b.over {
		return false
	}
	b.cancel(cause)
	t.forget(key, b)
	return true
}

// clients counts those who wait for a build.
func (t *inflight) clients(b *build) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return b.waiters
}

// wait attends a build: its log goes to the client until the result is known.
func (b *build) wait(ctx context.Context, log nix.Logger, offset uint64) (*nix.BuildResult, error) {
	b.log.follow(ctx, log, offset)
	select {
	case <-b.done:
		return b.result, b.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// cancelAll ends every build with a reason and waits until they have ended.
func (t *inflight) cancelAll(cause error) {
	t.mu.Lock()
	for _, b := range t.running {
		b.cancel(cause)
	}
	t.mu.Unlock()
	t.wg.Wait()
}

// endLingering ends the builds that go on for nobody and were asked for by principals
// that have to go.
func (t *inflight) endLingering(has func(principal string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, b := range t.running {
		if b.linger != nil && has(b.linger.principal) {
			t.stopLingering(b)
			t.giveUp(key, b)
		}
	}
}
