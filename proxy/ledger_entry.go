package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"nixbastion/internal/nix"
)

// ledgerEntry is a build that is under way. A nil one is nobody's, and takes notes of
// nothing.
type ledgerEntry struct {
	ledger  *ledger
	key     buildKey
	build   *build
	log     *buildLog
	release func() // of the log

	mu     sync.Mutex // guards what follows
	record buildRecord
	// running are the attempts, of which the builder, the begin and the phase are
	// read.
	running []*attempt
}

// runs notes the attempts that run now.
func (e *ledgerEntry) runs(attempts []*attempt) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running = slices.Clone(attempts)
}

// decided notes whose result is the answer.
func (e *ledgerEntry) decided(a *attempt) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.record.placed(a)
}

// tried notes an attempt that gave no answer.
func (e *ledgerEntry) tried(builder, reason string, took time.Duration) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	all := append(e.record.Attempts, attemptRecord{builder, reason, took.Seconds()})
	e.record.Attempts = slices.Clone(all[max(0, len(all)-maxRecordAttempts):])
}

// end notes how the build ended.
func (e *ledgerEntry) end(result *nix.BuildResult, err error, killed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.record.Builder == "" && len(e.running) > 0 { // it was cut short
		e.record.placed(e.running[len(e.running)-1])
	}
	e.running = nil
	e.record.finish(result, err, killed)
}

func (r *buildRecord) placed(a *attempt) {
	began := a.began.UTC().Round(time.Millisecond)
	r.Builder, r.Began = a.lease.Builder(), &began
}

// snapshot is what is known now.
func (e *ledgerEntry) snapshot() buildRecord {
	clients := e.ledger.inflight.clients(e.build)
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.record
	r.Principals = e.build.askers.names(r.Principals)
	if r.Ended != nil {
		return r
	}
	r.Clients = clients
	if len(e.running) > 0 {
		a := e.running[len(e.running)-1]
		r.State, r.Phase = "running", a.phase()
		r.placed(a)
	}
	return r
}

// killError ends a build that an admin wants ended.
type killError struct{ by, reason string }

func (k *killError) Error() string {
	text := "killed by " + k.by
	if k.reason != "" {
		text += ": " + k.reason
	}
	return text
}

// killedBy returns who had a build's context ended; nil if nobody had.
func killedBy(ctx context.Context) *killError {
	var k *killError
	errors.As(context.Cause(ctx), &k)
	return k
}

// result is what the clients get: a failure that Nix does not try again.
func (k *killError) result(o *order) *nix.BuildResult {
	text := fmt.Sprintf("build of '%s' was %s", o.drvPath, k)
	o.log.Warn("build killed", "drv", o.drvPath.String(), "by", k.by, "reason", quoted(k.reason))
	return nix.Failure(nix.StatusMiscFailure, "%s", text)
}

// kill ends the build, and returns what is known of it then, or, where a builder takes
// its time, when ctx ends.
func (e *ledgerEntry) kill(ctx context.Context, k *killError) (r buildRecord, begun bool) {
	begun = e.ledger.inflight.kill(e.key, e.build, k)
	select {
	case <-e.build.done:
	case <-ctx.Done():
	}
	return e.snapshot(), begun
}
