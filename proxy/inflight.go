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
// same bytes, in the same domain.
type buildKey [32]byte

// inflight is the table of builds that run. A build belongs to the proxy, not to
// the client that asked first: equal requests attach to it, and it ends early
// only when nobody waits any more.
type inflight struct {
	mu      sync.Mutex
	running map[buildKey]*build
	wg      sync.WaitGroup
}

func newInflight() *inflight { return &inflight{running: map[buildKey]*build{}} }

// build is one derivation on its way through a builder.
type build struct {
	log    *buildLog
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when result and err are set

	result *nix.BuildResult
	err    error

	waiters int // guarded by inflight.mu
}

// join attaches to the running build of key, or starts one by run in a goroutine
// of its own. The caller must call leave once.
func (t *inflight) join(ctx context.Context, key buildKey, log *buildLog, run func(context.Context, *build) (*nix.BuildResult, error)) (b *build, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b, ok := t.running[key]; ok {
		b.waiters++
		return b, false
	}
	runCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	b = &build{log: log, cancel: cancel, done: make(chan struct{}), waiters: 1}
	t.running[key] = b
	t.wg.Go(func() {
		b.result, b.err = run(runCtx, b)
		t.forget(key, b)
		log.finish()
		close(b.done)
		cancel(nil)
	})
	return b, true
}

// forget takes a build out of the table: later requests start anew.
func (t *inflight) forget(key buildKey, b *build) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running[key] == b {
		delete(t.running, key)
	}
}

// leave detaches a waiter. The last one cancels the build if it still runs.
func (t *inflight) leave(key buildKey, b *build) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b.waiters--; b.waiters > 0 {
		return
	}
	b.cancel(errNobodyWaits)
	if t.running[key] == b {
		delete(t.running, key)
	}
	t.wg.Go(func() {
		<-b.done
		b.log.free()
	})
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
