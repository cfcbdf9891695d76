package route

import (
	"cmp"
	"slices"
	"time"
)

const (
	// planBudget bounds what one plan reckons, in pairs of request and builder: some
	// fifty microseconds. beyondBudget is for what comes behind that.
	planBudget   = 3_000
	beyondBudget = 1_500
	// weighBudget bounds what it weighs anew, in inputs.
	weighBudget = 10_000
	// asideLimit is how many of a lane are looked at whose builders are all busy: what
	// they will take counts for others.
	asideLimit = 32
	// starvingLimit is how many that starve are put first.
	starvingLimit = 64
)

// planner is what a plan needs. It is kept for its memory.
type planner struct {
	outlook
	number uint64
	// order are the principals that wait, a heap.
	order  []*principal
	budget int
	weighs int
	// again is when a slot that somebody waits for should be free.
	again float64
}

// plan goes through the queue in its order and finds for each request the builder
// where it will be done first, counting what those before it will take. Who is
// done first on a free one gets the place; the others wait, and the plan is forgotten:
// the next one begins from what is then.
func (r *Router) plan(now time.Time) {
	r.planAt = time.Time{}
	if r.waiting == 0 || r.free.empty() {
		return
	}
	pl := &r.planner
	pl.begin(r)
	r.placeStarving(now)
	for !r.free.empty() && pl.budget > 0 {
		w := r.next()
		if w == nil {
			break
		}
		r.consider(w)
		pl.sink() // it was of the first principal
	}
	if pl.budget <= 0 {
		r.placeBeyond()
	}
	if pl.again < never {
		r.planAt = now.Add(seconds(pl.again - pl.now + 0.001))
	}
}

func (pl *planner) begin(r *Router) {
	pl.reset(r)
	pl.number++
	pl.budget, pl.weighs, pl.again = planBudget, weighBudget, never
	pl.order = pl.order[:0]
	for _, p := range r.principals {
		if len(p.lanes) == 0 {
			continue
		}
		p.virtual = p.served
		for _, l := range p.lanes {
			l.cursor, l.looked, l.closed = 0, 0, false
		}
		pl.order = append(pl.order, p)
	}
	slices.SortFunc(pl.order, byTurn) // a sorted slice is a heap
}

// byTurn is the order of principals: by class, then who was served least.
func byTurn(a, b *principal) int {
	return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.virtual, b.virtual), cmp.Compare(a.seq, b.seq))
}

// next takes the next request of the order, nil if there is none that matters.
func (r *Router) next() *waiter {
	pl := &r.planner
	for len(pl.order) > 0 {
		p := pl.order[0]
		if w := r.nextOf(p); w != nil {
			return w
		}
		last := len(pl.order) - 1
		pl.order[0] = pl.order[last]
		pl.order = pl.order[:last]
		pl.sink()
	}
	return nil
}

// sink restores the heap after its first has changed.
func (pl *planner) sink() {
	i, order := 0, pl.order
	for {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(order) && byTurn(order[child], order[least]) < 0 {
				least = child
			}
		}
		if least == i {
			return
		}
		order[i], order[least] = order[least], order[i]
		i = least
	}
}

// nextOf is the first request of a principal that the plan has not looked at.
func (r *Router) nextOf(p *principal) *waiter {
	if p.atLimit() {
		return nil
	}
	var first *waiter
	for _, l := range p.lanes {
		if w := r.head(l); w != nil && (first == nil || w.before(first) < 0) {
			first = w
		}
	}
	return first
}

// head is the first of a lane that the plan has not looked at.
func (r *Router) head(l *lane) *waiter {
	for !l.closed && l.cursor < len(l.waiters) {
		w := l.waiters[l.cursor]
		if w.whole().planned != r.planner.number {
			if l.looked >= asideLimit && !l.fits.overlaps(r.free) {
				break
			}
			return w
		}
		l.cursor++
	}
	l.closed = true
	return nil
}

// specialCost is by how much longer it takes to reckon with a request that needs
// more than a slot.
const specialCost = 16

// cost is what it takes to look at one request of the lane.
func (l *lane) cost() int {
	if l.special() {
		return specialCost * (len(l.options) + 1)
	}
	return len(l.options) + 1
}

// note counts that the plan looks at a request, as if it were served.
func (pl *planner) note(w *waiter) {
	w.whole().planned = pl.number
	w.lane.looked++
	pl.budget -= w.lane.cost()
	w.lane.principal.virtual += w.seconds / w.lane.principal.weight
}

// consider plans one request.
func (r *Router) consider(w *waiter) {
	pl := &r.planner
	pl.note(w)
	f := pl.bestWeighed(r, w)
	w.whole().choice, w.whole().slotAt = f.index, f.slotAt
	switch {
	case f.index < 0:
	case f.slotAt <= pl.now:
		r.place(w, f)
	default:
		p := r.places[f.index]
		if pl.slots[f.index] == nil && len(p.leases) > 0 {
			pl.again = min(pl.again, p.leases[0].end)
		}
		pl.give(p, w, f)
	}
}

// place grants what the plan has found.
func (r *Router) place(w *waiter, f offer) {
	pl, p := &r.planner, r.places[f.index]
	terms := pl.termsOf(r, w, f)
	pl.give(p, w, f)
	r.grant(w, p, f, terms)
	pl.granted(p)
}

// bestWeighed is best after what it rests on has been weighed anew where builders
// got or lost paths meanwhile, the best one first.
func (pl *planner) bestWeighed(r *Router, w *waiter) offer {
	f := pl.best(r, w, never)
	for f.index >= 0 && pl.weighAgain(r, w, f.index) {
		f = pl.best(r, w, never)
	}
	again := false
	for _, opt := range w.lane.options {
		if pl.weighs <= 0 {
			break
		}
		if w.as[opt.index] != pl.changes[opt.index] && pl.slotAt[opt.index] < never {
			again = pl.weighAgain(r, w, opt.index) || again
		}
	}
	if again {
		return pl.best(r, w, never)
	}
	return f
}

// weighAgain brings up to date what a builder lacks for a request, and reports
// whether it had to and could.
func (pl *planner) weighAgain(r *Router, w *waiter, index int) bool {
	if w.as[index] == pl.changes[index] || w.as[index] == always || pl.weighs <= 0 {
		return false
	}
	pl.weighs -= len(w.req.Inputs)
	bytes, changes := r.paths.missing(r.places[index].store, w.req.Inputs)
	w.lacks[index], w.as[index] = float32(bytes), changes
	pl.changes[index] = changes
	return true
}

// placeStarving puts those first who have waited for too long.
func (r *Router) placeStarving(now time.Time) {
	w, n := r.oldest, 0
	for ; w != nil && n < starvingLimit && now.Sub(w.since) >= r.starveAfter && !r.free.empty(); n++ {
		younger := w.younger
		if w.lane.fits.overlaps(r.free) && !w.lane.principal.atLimit() {
			r.consider(w)
		}
		w = younger
	}
	if n > 0 {
		slices.SortFunc(r.planner.order, byTurn)
	}
}

// placeBeyond fills free slots from the part of the queue that the plan did not come
// to. Nobody there loses by a builder on which the build is done before the whole
// queue would be.
func (r *Router) placeBeyond() {
	pl := &r.planner
	pl.budget = beyondBudget
	horizon := pl.now + r.drainTime()
	for !r.free.empty() && pl.budget > 0 {
		w := r.next()
		if w == nil {
			return
		}
		pl.note(w)
		if f := pl.best(r, w, pl.now); f.index >= 0 && f.finish <= horizon {
			r.place(w, f)
		}
		if !w.lane.fits.overlaps(r.free) {
			w.lane.closed = true
		}
		pl.sink()
	}
}

// drainTime is about how long the builders will take for all that waits, in seconds.
func (r *Router) drainTime() float64 {
	speed := 0.0
	for _, p := range r.places {
		if p.up() {
			speed += float64(p.MaxJobs) * orOne(p.SpeedFactor)
		}
	}
	return r.work / max(speed, 1e-9)
}
