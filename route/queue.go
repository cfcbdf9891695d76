package route

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// nearFront is how many requests ahead count as few: whoever has no more is told
// of every step.
const nearFront = 10

// principal is one that holds places or waits for them. Guarded by Router.mu.
type principal struct {
	name  string
	limit int // 0 means none
	busy  int
	lanes int
}

func (p *principal) atLimit() bool { return p.limit > 0 && p.busy >= p.limit }

// atLimitReason says for people that it is at its limit, else nothing.
func (p *principal) atLimitReason() string {
	if !p.atLimit() {
		return ""
	}
	return fmt.Sprintf("%s runs %d of at most %d builds", p.name, p.busy, p.limit)
}

// lane is the queue of one principal's requests that the same builders match:
// what can be placed of it is its first one. So a step of the whole queue looks
// at lanes, of which there are few, and not at requests. Guarded by Router.mu.
type lane struct {
	shape
	key       string
	principal *principal
	// fits are the indexes of the builders that match, up or not; misfits are the
	// others of the domain. Both are by examine.
	fits    bitset
	misfits []Candidate
	waiters []*waiter // by seq; never empty for long
	// tried is how many at the front the present dispatch has found to wait by the
	// rule's own choice.
	tried int
	// limited is whether the principal was at its limit when last looked at.
	limited bool
	// downSince is since when all that fit are down; zero if they are not.
	downSince time.Time
}

// competes reports whether a request of l and one of m can be in each other's way.
func (l *lane) competes(m *lane) bool {
	return l.principal == m.principal && l.principal.limit > 0 || l.fits.overlaps(m.fits)
}

// after returns where in the lane requests later than seq begin.
func (l *lane) after(seq uint64) int {
	i, found := slices.BinarySearchFunc(l.waiters, seq, func(w *waiter, seq uint64) int { return cmp.Compare(w.seq, seq) })
	if found {
		i++
	}
	return i
}

// waiter is a request in the queue. Guarded by Router.mu but for the channels.
type waiter struct {
	req   Request
	lane  *lane
	seq   uint64 // order of arrival
	since time.Time
	ahead int // earlier requests in competing lanes
	// tellAt is the number of requests ahead at which the position is news.
	tellAt  int
	changed chan struct{} // holds one: there may be news
	// done is closed when the wait is over; lease or err is set before.
	done  chan struct{}
	lease *Lease
	err   error
}

func (w *waiter) over() bool { return w.lease != nil || w.err != nil }

func (w *waiter) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// nextNews is the number of requests ahead that is worth telling after ahead was
// told. Far back only a tenth is: a log of ten thousand lines helps nobody, and
// one that left the queue must not wake everybody.
func nextNews(ahead int) int { return ahead - max(1, ahead/nearFront) }

// enqueue puts a request at the end of the queue.
func (r *Router) enqueue(req Request) *waiter {
	r.lastSeq++
	w := &waiter{
		req: req, lane: r.laneOf(&req), seq: r.lastSeq, since: r.now(),
		changed: make(chan struct{}, 1), done: make(chan struct{}),
	}
	w.lane.waiters = append(w.lane.waiters, w)
	w.ahead = r.aheadOf(w)
	w.tellAt = -1
	r.waiting++
	return w
}

func (r *Router) laneOf(req *Request) *lane {
	owner := r.principalOf(req)
	s := req.shape()
	key := s.key(req.Principal)
	l := r.lanes[key]
	if l == nil {
		l = &lane{shape: s, key: key, principal: owner}
		owner.lanes++
		r.lanes[key] = l
		r.examine(l)
	}
	return l
}

// principalOf finds or makes the request's principal and sets its limit anew.
func (r *Router) principalOf(req *Request) *principal {
	p := r.principals[req.Principal]
	if p == nil {
		p = &principal{name: req.Principal, limit: req.PrincipalMaxJobs}
		r.principals[req.Principal] = p
	}
	was := p.limit
	p.limit = req.PrincipalMaxJobs
	if (was > 0) != (p.limit > 0) {
		r.recount() // its lanes compete now, or do so no more
	}
	return p
}

// remove takes a request out of the queue; those behind it move up.
func (r *Router) remove(w *waiter) {
	l := w.lane
	i := l.after(w.seq) - 1
	l.waiters = slices.Delete(l.waiters, i, i+1)
	r.waiting--
	r.moveUp(w)
	if len(l.waiters) == 0 {
		delete(r.lanes, l.key)
		l.principal.lanes--
		r.dropIdle(l.principal)
	}
}

func (r *Router) dropIdle(p *principal) {
	if p.busy == 0 && p.lanes == 0 {
		delete(r.principals, p.name)
	}
}

// moveUp counts down those that gone was ahead of.
func (r *Router) moveUp(gone *waiter) {
	for _, l := range r.lanes {
		if !l.competes(gone.lane) {
			continue
		}
		for _, w := range l.waiters[l.after(gone.seq):] {
			w.ahead--
			if w.ahead <= w.tellAt {
				w.signal()
			}
		}
	}
}

// aheadOf counts the earlier requests that may get in the way of w.
func (r *Router) aheadOf(w *waiter) int {
	ahead := 0
	for _, l := range r.lanes {
		if l.competes(w.lane) {
			ahead += l.after(w.seq - 1)
		}
	}
	return ahead
}

// recount sets everybody's position after what competes has changed.
func (r *Router) recount() {
	for _, l := range r.lanes {
		for _, w := range l.waiters {
			w.ahead = r.aheadOf(w)
		}
	}
}

// failHopeless ends the wait of requests that no builder matches, or whose
// patience with builders that are down is over.
func (r *Router) failHopeless(now time.Time) {
	for _, l := range r.lanes {
		if l.fits.overlaps(r.up) {
			l.downSince = time.Time{}
			continue
		}
		if l.downSince.IsZero() {
			l.downSince = now
		}
		// From the end, so that nobody is counted up who fails next.
		for _, w := range slices.Backward(slices.Clone(l.waiters)) {
			if l.fits.empty() || !w.deadline().After(now) {
				r.fail(w, r.noBuilder(w))
			}
		}
	}
}

// deadline is when the patience of w ends, if its builders stay down.
func (w *waiter) deadline() time.Time {
	from := w.lane.downSince
	if w.since.After(from) {
		from = w.since
	}
	return from.Add(w.req.Patience)
}

func (r *Router) fail(w *waiter, err error) {
	r.remove(w)
	w.err = err
	close(w.done)
}

func (r *Router) noBuilder(w *waiter) *NoBuilderError {
	l := w.lane
	err := &NoBuilderError{
		Kind: NoneMatches, Name: w.req.Name, Domain: l.domain, System: l.system, Features: l.features,
		Builders: r.reasons(l),
	}
	switch {
	case !l.fits.empty():
		err.Kind = AllDown
	case len(l.misfits) > 0 && l.misfits[0].State == Excluded:
		err.Kind = AllExcluded
	}
	return err
}

// signalChanged wakes those for whom the reasons have changed. A principal comes
// to its limit and off it with every build: only those in front are woken for that.
func (r *Router) signalChanged() {
	for _, l := range r.lanes {
		stirred := l.fits.overlaps(r.stirred)
		turned := l.limited != l.principal.atLimit()
		l.limited = l.principal.atLimit()
		if !stirred && !turned {
			continue
		}
		for _, w := range l.waiters {
			if stirred || w.ahead <= nearFront {
				w.signal()
			}
		}
	}
	r.stirred = nil
}

func (r *Router) signalAll() {
	for _, l := range r.lanes {
		for _, w := range l.waiters {
			w.signal()
		}
	}
}
