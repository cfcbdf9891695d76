package route

import (
	"context"
	"fmt"
	"time"
)

// Lease is a place on a builder for one build. Its slot counts, at the builder
// and for the principal, from Acquire until Release or Built. Whoever holds it
// releases it when the builder has replied, or when its session was seen to end:
// what follows a build, such as fetching its outputs, needs no slot.
type Lease struct {
	router    *Router
	place     *place
	builder   string // its name, which a reload writes anew
	principal *principal
	terms     Terms

	system  string
	job     string
	needs   map[string]int64
	isAlone bool
	inputs  []Input
	trial   bool // the builder proves itself with it

	// Guarded by Router.mu:
	released bool
	// seconds is the estimate at speed 1 and build that on this builder.
	seconds, build float64
	// started is when the place was taken, later when the build began, and end when
	// it will be over; by the router's clock.
	started, end float64
	began        bool
	// coming are inputs that are noted as held, though they are on their way.
	coming  []PathID
	arrived bool
}

// Builder is the name of the builder.
func (l *Lease) Builder() string { return l.builder }

// Terms is what the choice of the builder was made of.
func (l *Lease) Terms() Terms { return l.terms }

// Transferred says that the inputs have reached the builder, how many bytes of them
// were sent, and how long that took, waiting for others not counted: the builder's
// bandwidth is learned from it.
func (l *Lease) Transferred(bytes int64, took time.Duration) {
	r := l.router
	r.paths.note(l.place.store, l.inputs)
	r.lock()
	defer r.unlock()
	l.coming = nil
	l.place.arrived(l)
	l.place.pace.learnBandwidth(bytes, took)
}

// Began says that the builder is asked to build now.
func (l *Lease) Began() {
	r := l.router
	r.lock()
	defer r.unlock()
	if l.released {
		return
	}
	l.began = true
	l.started = r.clock()
	l.place.remove(l)
	l.end = l.started + l.build
	l.place.insert(l)
}

// Built releases the lease of a build that went well: its duration since Began is
// learned, and that the builder works. It returns how long the build would have taken
// at speed 1, in seconds; 0 if that is not known.
func (l *Lease) Built() (seconds float64) {
	r := l.router
	r.lock()
	defer r.unlock()
	if l.released {
		return 0
	}
	if l.began {
		seconds = l.learn(r.clock() - l.started)
		r.estimateAgain(l.job)
	}
	r.works(l.place)
	l.release()
	return seconds
}

// Worked says that the builder does what it should, though the build failed. The
// lease goes on.
func (l *Lease) Worked() {
	r := l.router
	r.lock()
	defer r.unlock()
	r.works(l.place)
}

// works ends the trial of a builder, and forgets half of its faults.
func (r *Router) works(p *place) {
	if !p.trial {
		return
	}
	p.trial = false
	p.faults /= 2
	if !p.removed() {
		r.noteHealth(p)
	}
}

// learn takes a duration in seconds and returns that at speed 1.
func (l *Lease) learn(took float64) float64 {
	p := l.place
	configured := p.speed(l.system)
	e := l.router.estimates
	// Two builds on one builder say nothing about how fast it is.
	if before := e.known(l.job, l.system); before.builds > 0 && before.builder != p.Name {
		p.pace.learnSpeed(before.seconds, took, configured)
	}
	done := took * configured * p.pace.factor()
	e.learn(l.job, l.system, p.Name, done)
	l.principal.served += (done - l.seconds) / l.principal.weight
	return done
}

// Release gives the slot to whoever waits for it. Only the first call of Release or
// Built counts.
func (l *Lease) Release() {
	r := l.router
	r.lock()
	defer r.unlock()
	if !l.released {
		l.release()
	}
}

func (l *Lease) release() {
	r := l.router
	l.released = true
	r.paths.unnote(l.place.store, l.coming)
	before := l.place.free()
	l.place.drop(l)
	r.noteReleased(l.place, before)
	l.principal.busy--
	r.dropIdle(l.principal)
	r.settle()
}

func (r *Router) noteReleased(p *place, wasFree bool) {
	switch {
	case !p.removed():
		r.noteState(p)
		if !wasFree {
			r.stirred.add(p.index)
		}
	case p.busy == 0:
		delete(r.byName, p.Name)
		r.paths.drop(p.store)
	}
}

// tellEvery is how often a request that waits looks for news, at most.
const tellEvery = 5 * time.Second

// Acquire returns a place for a request, as soon as there is one. It fails at once
// with a [NoBuilderError] if there can be none, with [ErrQueueFull] if too many wait
// already, and with the cause of ctx when that ends.
//
// Where it has to wait it calls onWait, unless nil, at once and then whenever a
// builder's state or the place in the queue has changed, though not for every step
// of a long queue. It does so on its own goroutine, so never twice at a time and
// never after it has returned. A slot may be given while onWait runs: it should not
// block.
func (r *Router) Acquire(ctx context.Context, req Request, onWait func(Waiting)) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, endOfWait(ctx)
	}
	done := make(chan struct{})
	w, err := r.enter(req, func() { close(done) })
	if err != nil {
		return nil, err
	}
	tell := teller{router: r, w: w, onWait: onWait}
	for !isClosed(done) {
		next := time.NewTimer(tell.news())
		select {
		case <-done:
		case <-w.changed:
		case a := <-req.Joined:
			r.join(w, a)
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			r.leave(w)
			return nil, endOfWait(ctx)
		}
		next.Stop()
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

// join lets a request go when a further principal has its turn.
func (r *Router) join(w *waiter, a Asker) {
	r.lock()
	defer r.unlock()
	r.addTurn(w, a)
	r.settle()
}

// Ticket is a request that was submitted.
type Ticket struct {
	router  *Router
	w       *waiter
	granted func(*Lease, error)
	early   bool // over before Submit returned
}

// Submit is Acquire for who has a clock of his own and waits for many at once: granted
// is called once with what Acquire would return, before Submit or the call that
// brought it about returns.
func (r *Router) Submit(req Request, granted func(*Lease, error)) (*Ticket, error) {
	t := &Ticket{router: r, granted: granted}
	w, err := r.enter(req, t.answer)
	if err != nil {
		return nil, err
	}
	t.w = w
	if t.early {
		t.answer()
	}
	return t, nil
}

func (t *Ticket) answer() {
	if t.w == nil {
		t.early = true
		return
	}
	t.granted(t.w.lease, t.w.err)
}

// Join says that another principal waits for the same build.
func (t *Ticket) Join(a Asker) { t.router.join(t.w, a) }

// Cancel ends the wait, and gives back a lease that was granted and not released.
func (t *Ticket) Cancel() { t.router.leave(t.w) }

// enter queues a request and places it if that is possible now. Only then the queue
// may be found too long: one that need not wait is never refused for those who do.
// ended is called, without the router's lock, when the wait is over.
func (r *Router) enter(req Request, ended func()) (*waiter, error) {
	r.estimates.learnInputs(req.Job, req.InputJobs)
	w := r.prepare(req)
	w.ended = ended
	r.lock()
	defer r.unlock()
	r.enqueue(w)
	r.settle()
	if r.waiting > r.queueLimit && !w.over() {
		r.remove(w)
		return nil, ErrQueueFull
	}
	return w, nil
}

// leave ends the wait of w, and gives back the place that it got in the meantime.
func (r *Router) leave(w *waiter) {
	r.lock()
	defer r.unlock()
	if !w.over() {
		r.remove(w) // nobody gets a slot for that
	} else if w.lease != nil && !w.lease.released {
		w.lease.release()
	}
}
