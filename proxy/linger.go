package proxy

import (
	"time"

	"nixbastion/internal/nix"
)

// A build whose last client was lost goes on for a while: the client that comes
// back and asks for the same again finds it, with its log from the first line on.
// What it made meanwhile is in the cache either way. A client that has left by its
// own will wants nothing any more, and its builds end at once.

// maxLingering bounds the builds that one principal can leave running for nobody;
// more of them end at once. Each holds its slot, and counts as one of the
// principal's max_jobs, as long as it runs.
const maxLingering = 32

// lingering is a build's time without a client.
type lingering struct {
	// principal is whose client was the last to be lost.
	principal string
	// limit is how long the time is at most.
	limit time.Duration
	// release gives back what the build needs meanwhile. It is called once, from
	// any goroutine.
	release func()

	// Guarded by inflight.mu, once it has begun:
	timer *time.Timer
	ended chan struct{}
}

// lose detaches a waiter whose client was lost, and reports whether the build goes
// on for nobody from now on. If not, nothing of l is used.
func (t *inflight) lose(key buildKey, b *build, l *lingering) (lingers bool) {
	unread := t.detach(key, b, func() bool {
		lingers = l.limit > 0 && t.lingering[l.principal] < maxLingering
		if lingers {
			t.startLingering(key, b, l)
		}
		return lingers
	})
	if unread {
		b.log.free()
	}
	return lingers
}

// startLingering sets the end of a build that has no client. The caller holds mu.
func (t *inflight) startLingering(key buildKey, b *build, l *lingering) {
	l.ended = make(chan struct{})
	l.timer = time.AfterFunc(l.limit, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if b.linger == l { // nobody came meanwhile
			t.stopLingering(b)
			t.giveUp(key, b)
		}
	})
	b.linger = l
	t.lingering[l.principal]++
	t.wg.Go(func() {
		<-l.ended
		l.release()
	})
}

// stopLingering reports whether the build was lingering. The caller holds mu.
func (t *inflight) stopLingering(b *build) bool {
	l := b.linger
	if l == nil {
		return false
	}
	l.timer.Stop()
	close(l.ended)
	b.linger = nil
	if t.lingering[l.principal]--; t.lingering[l.principal] == 0 {
		delete(t.lingering, l.principal)
	}
	return true
}

// leave ends the attendance of a client of an order's build.
func (b *builds) leave(o *order, key buildKey, running *build) {
	if o.lost == nil || !o.lost() {
		b.inflight.leave(key, running)
		return
	}
	l := &lingering{principal: o.principal.Name, limit: b.policy.Current().Scheduling.Linger, release: b.pinInputs(o)}
	if !b.inflight.lose(key, running, l) {
		l.release()
		return
	}
	o.log.Info("client was lost; its build goes on", "drv", o.drvPath.String(), "seconds", l.limit.Seconds())
}

// pinInputs keeps the inputs of an order in the cache when its session, which has
// done so, is over.
func (b *builds) pinInputs(o *order) (release func()) {
	paths := make([]nix.StorePath, len(o.inputs))
	for i, info := range o.inputs {
		paths[i] = info.Path
	}
	pins := b.cache.NewPins(o.principal.Name)
	pins.Pin(o.principal.Domain, paths)
	return pins.Release
}
