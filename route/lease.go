package route

import (
	"context"
	"fmt"
	"time"
)

// Lease is a place on a builder for one build. Its slot counts, at the builder
// and for the principal, from Acquire until Release. Whoever holds it releases it
// when the builder has replied, or when its session was seen to end: what follows
// a build, such as fetching its outputs, needs no slot.
type Lease struct {
	router    *Router
	place     *place
	principal *principal
	decision  Decision
	inputs    []Input
	trial     bool // the builder proves itself with it
	// Guarded by Router.mu:
	released bool
	began    time.Time // zero before
}

// Builder is the name of the builder.
func (l *Lease) Builder() string { return l.decision.Builder }

// Decision is the ranking that led to the builder. It is shared: do not change it.
func (l *Lease) Decision() Decision { return l.decision }

// Transferred says that the inputs have reached the builder, how many bytes of them
// were sent, and how long that took: the builder's bandwidth is learned from it. What
// it was thought to lack it is known to hold.
func (l *Lease) Transferred(bytes int64, took time.Duration) {
	ids := make([]PathID, len(l.inputs))
	for i, in := range l.inputs {
		ids[i] = in.ID
	}
	l.router.NoteHeld(l.Builder(), ids...)
}

// Began says that the builder is asked to build now.
func (l *Lease) Began() {
	l.router.mu.Lock()
	defer l.router.mu.Unlock()
	l.began = l.router.now()
}

// Built releases the lease of a build that went well: its duration since Began is
// learned, and that the builder works.
func (l *Lease) Built() {
	l.router.setHealth(l.Builder(), func(h *health) { h.breaker.trial = false })
	l.Release()
}

// Release gives the slot to whoever waits for it. Only the first call counts.
func (l *Lease) Release() {
	r := l.router
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.released {
		return
	}
	l.released = true
	if l.trial {
		l.place.trying = false
	}
	l.place.busy--
	r.noteReleased(l.place)
	l.principal.busy--
	r.dropIdle(l.principal)
	r.settle()
}

func (r *Router) noteReleased(p *place) {
	switch {
	case !p.removed():
		r.noteState(p)
		if p.busy >= p.MaxJobs {
			r.stirred.add(p.index) // more was taken than there is since a reload
		}
	case p.busy == 0:
		delete(r.byName, p.Name)
	}
}

// Acquire returns a place for a request, as soon as there is one. It fails at once
// with a [NoBuilderError] if there can be none, with [ErrQueueFull] if too many wait
// already, and with the cause of ctx when that ends.
//
// Where it has to wait it calls onWait, unless nil, at once and then whenever the
// reasons have changed or the position has: by one near the front, by a tenth
// farther back. It does so on its own goroutine, so never twice at a time and never
// after it has returned. A slot may be given while onWait runs: it should not block.
func (r *Router) Acquire(ctx context.Context, req Request, onWait func(Waiting)) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, endOfWait(ctx)
	}
	w, err := r.enter(req)
	if err != nil {
		return nil, err
	}
	tell := teller{router: r, w: w, onWait: onWait}
	for !isClosed(w.done) {
		tell.news()
		select {
		case <-w.done:
		case <-w.changed:
		case <-ctx.Done():
			r.leave(w)
			return nil, endOfWait(ctx)
		}
	}
	return w.lease, w.err
}

func endOfWait(ctx context.Context) error {
	return fmt.Errorf("wait for a builder: %w", context.Cause(ctx))
}

func isClosed(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// enter queues a request and places it if that is possible now. Only then the queue
// may be found too long: one that need not wait is never refused for those who do.
func (r *Router) enter(req Request) (*waiter, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.enqueue(req)
	r.settle()
	if r.waiting > r.queueLimit {
		r.remove(w)
		return nil, ErrQueueFull
	}
	return w, nil
}

// leave ends the wait of w, and gives back the place that it got in the meantime.
func (r *Router) leave(w *waiter) {
	r.mu.Lock()
	if !w.over() {
		r.remove(w) // nobody gets a slot for that
	}
	lease := w.lease
	r.mu.Unlock()
	if lease != nil {
		lease.Release()
	}
}
