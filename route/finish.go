package route

import (
	"math"
	"slices"
)

const (
	// wishPrice is by how much longer a build counts on a builder that lacks a soft
	// feature of it.
	wishPrice = 2
	// avoidPrice is what it costs, in seconds, to go to a builder that is to be
	// avoided: any other is better.
	avoidPrice = 1e6
	// crowding is by how much longer a build counts on a builder whose slots are all
	// taken than on an idle one: of two that are otherwise alike the emptier is chosen.
	// More sends builds to slow builders that idle.
	crowding = 0.01
	// bytePrice is what it costs to send a byte, in seconds, besides the time that it
	// takes: links and disks serve others too. In simulated fleets it halves what is
	// sent and costs no time, since a builder that gets a closure early has it
	// for all that follow, and whoever waits for one that has it waits a little.
	bytePrice = 150e-9
	// sureness is by how much an end that depends on a slot that is not free yet must
	// be earlier: slots become free later than thought more often than earlier.
	sureness = 0.02
)

// option is what a builder that matches is to the requests of a lane.
type option struct {
	index int
	// perSecond is how long a second at speed 1 takes there, by the configured speed.
	perSecond float64
	// penalty is added to the finish, in seconds.
	penalty float64
}

// examine finds the builders of a lane's domain that match, and says of the
// others why not.
func (r *Router) examine(l *lane) {
	l.fits, l.options, l.misfits = nil, nil, nil
	var unfit []Candidate
	for _, p := range r.places {
		if !slices.Contains(p.Domains, l.domain) {
			continue
		}
		if m := match(&p.Builder, &l.shape); !m.ok() {
			unfit = append(unfit, Candidate{Name: p.Name, State: Unfit, Reason: m.String()})
		} else if ex, excluded := exclusionOf(p.Name, l.exclude); excluded {
			l.misfits = append(l.misfits, Candidate{Name: p.Name, State: Excluded, Reason: withReason("excluded", ex.Reason)})
		} else {
			l.fits.add(p.index)
			l.options = append(l.options, l.optionOf(p))
		}
	}
	l.misfits = append(l.misfits, unfit...)
}

func (l *lane) optionOf(p *place) option {
	o := option{index: p.index, perSecond: 1 / p.speed(l.system)}
	for _, f := range l.soft {
		if !slices.Contains(p.Features, f) && !slices.Contains(p.MandatoryFeatures, f) {
			o.perSecond *= wishPrice
		}
	}
	if _, avoided := exclusionOf(p.Name, l.avoid); avoided {
		o.penalty = avoidPrice
	}
	return o
}

// outlook is what the builders are like at one moment, and what a plan has given
// away of them already; by index. Times are by the router's clock.
type outlook struct {
	now float64
	// slotAt is when a slot will be free, infinite if never; linkAt when the inputs
	// that are on their way are there.
	slotAt, linkAt []float64
	// perByte is what a byte costs, pace what a second does by what was learned, and
	// crowd the part of the slots that is taken, times crowding.
	perByte, pace, crowd []float64
	// changes are those of the stores, for what was weighed before.
	changes []uint32
	// kept are the times from which, to which a builder is kept for a request that
	// needs more than a slot.
	keptFrom, keptTo []float64
	keeps            bool
	// given are the ends of what the plan has given, and slots the times at which
	// slots become free with that, nil where it has given nothing.
	given [][]occupant
	slots [][]float64
}

// occupant is a lease, or what a plan has given.
type occupant struct {
	end   float64
	needs map[string]int64
	alone bool
}

var never = math.Inf(1)

// reset looks at the builders anew.
func (o *outlook) reset(r *Router) {
	n := len(r.places)
	o.now, o.keeps = r.clock(), false
	for _, s := range []*[]float64{&o.slotAt, &o.linkAt, &o.perByte, &o.pace, &o.crowd, &o.keptFrom, &o.keptTo} {
		*s = slices.Grow((*s)[:0], n)[:n]
	}
	o.changes = slices.Grow(o.changes[:0], n)[:n]
	o.given = slices.Grow(o.given[:0], n)[:n]
	o.slots = slices.Grow(o.slots[:0], n)[:n]
	for i, p := range r.places {
		o.look(i, p)
	}
}

func (o *outlook) look(i int, p *place) {
	p.refresh(o.now)
	o.slotAt[i], o.linkAt[i] = o.slotOf(p), p.linkFree
	if p.asleep {
		o.linkAt[i] = max(p.linkFree, o.now+p.wake.Seconds())
	}
	o.perByte[i], o.pace[i] = 1/p.pace.bytesPerSecond(), 1/p.pace.factor()
	o.crowd[i] = crowdOf(p)
	o.keptFrom[i], o.keptTo[i] = never, never
	o.changes[i] = p.store.changes.Load()
	o.given[i], o.slots[i] = o.given[i][:0], nil
}

// slotOf is when a builder has a slot for a plain build.
func (o *outlook) slotOf(p *place) float64 {
	switch {
	case !p.up():
		return never
	case p.free():
		return o.now
	case p.alone != nil:
		return p.alone.end
	case len(p.leases) > 0:
		// After a reload more may be taken than there is.
		return p.leases[min(max(p.busy-p.MaxJobs, 0), len(p.leases)-1)].end
	}
	return never
}

// offer is what a request gets at a builder: times by the router's clock.
type offer struct {
	index  int
	slotAt float64 // when it may go there
	start  float64 // when the inputs may follow
	moves  float64 // how long they take
	build  float64
	finish float64
}

// offerOf reckons what a request gets at a builder.
func (o *outlook) offerOf(r *Router, w *waiter, opt option) offer {
	i := opt.index
	f := offer{index: i, slotAt: o.slotAt[i]}
	f.moves = float64(w.lacks[i]) * o.perByte[i]
	f.build = w.seconds * opt.perSecond * o.pace[i]
	if w.lane.special() {
		f.slotAt = o.specialSlot(r.places[i], w.lane)
	}
	f.start = max(f.slotAt, o.linkAt[i])
	if o.keeps && f.slotAt < o.keptTo[i] && f.start+f.moves+f.build > o.keptFrom[i] {
		f.slotAt = o.keptTo[i]
		f.start = max(f.start, f.slotAt)
	}
	f.finish = o.finish(&opt, f.slotAt, f.start, float64(w.lacks[i]), f.build)
	return f
}

// finish is when a build counts as done that gets a slot at slotAt, and from start on
// the bytes that its builder lacks.
func (o *outlook) finish(opt *option, slotAt, start, bytes, build float64) float64 {
	i := opt.index
	done := start + bytes*(o.perByte[i]+bytePrice) + build*(1+o.crowd[i]) + opt.penalty
	if slotAt > o.now {
		done += sureness * (done - o.now)
	}
	return done
}

// best is the offer that is done first of those with a slot by a time, which may be
// never: of builder -1 if there is none. On a tie it is the first by name.
func (o *outlook) best(r *Router, w *waiter, by float64) offer {
	if !o.keeps && !w.lane.special() {
		return o.bestPlain(r, w, by)
	}
	best := offer{index: -1, finish: never}
	for _, opt := range w.lane.options {
		if o.slotAt[opt.index] > by {
			continue
		}
		if f := o.offerOf(r, w, opt); f.slotAt <= by && f.finish < best.finish {
			best = f
		}
	}
	return best
}

// bestPlain is best where nothing but a slot is needed: most of the time of a plan is
// spent here.
func (o *outlook) bestPlain(r *Router, w *waiter, by float64) offer {
	least, chosen := never, -1
	for k := range w.lane.options {
		opt := &w.lane.options[k]
		i := opt.index
		slot := o.slotAt[i]
		if slot > by {
			continue
		}
		build := w.seconds * opt.perSecond * o.pace[i]
		if done := o.finish(opt, slot, max(slot, o.linkAt[i]), float64(w.lacks[i]), build); done < least {
			least, chosen = done, k
		}
	}
	if chosen < 0 {
		return offer{index: -1, finish: never}
	}
	return o.offerOf(r, w, w.lane.options[chosen])
}

// specialSlot is when a builder has what a request needs besides a slot, counting
// what the plan has given.
func (o *outlook) specialSlot(p *place, l *lane) float64 {
	if !p.up() {
		return never
	}
	if p.trial && p.trying {
		return o.slotAt[p.index]
	}
	taken := o.occupants(p)
	at := o.now
	for !roomFor(p, l, taken) {
		if len(taken) == 0 {
			return never
		}
		at, taken = max(at, taken[0].end), taken[1:]
	}
	return at
}

// occupants are what a builder does, by the end.
func (o *outlook) occupants(p *place) []occupant {
	all := make([]occupant, 0, len(p.leases)+len(o.given[p.index]))
	for _, l := range p.leases {
		all = append(all, occupant{l.end, l.needs, l.isAlone})
	}
	all = append(all, o.given[p.index]...)
	slices.SortFunc(all, func(a, b occupant) int {
		switch {
		case a.end < b.end:
			return -1
		case a.end > b.end:
			return 1
		}
		return 0
	})
	return all
}

// roomFor reports whether a request may be beside others.
func roomFor(p *place, l *lane, others []occupant) bool {
	if len(others) >= p.MaxJobs || l.alone && len(others) > 0 {
		return false
	}
	for name, amount := range l.needs {
		left := p.Resources[name]
		for _, other := range others {
			left -= other.needs[name]
		}
		if left < amount {
			return false
		}
	}
	return !slices.ContainsFunc(others, func(other occupant) bool { return other.alone })
}

// give takes from the outlook what a request gets, now or later.
func (o *outlook) give(p *place, w *waiter, f offer) {
	i, end := f.index, f.start+f.moves+f.build
	if f.moves > 0 {
		o.linkAt[i] = f.start + f.moves
	}
	if w.lane.special() && f.slotAt > o.now {
		o.keeps = true
		o.keptFrom[i], o.keptTo[i] = min(o.keptFrom[i], f.slotAt), end
	}
	o.given[i] = append(o.given[i], occupant{end, w.lane.needs, w.lane.alone})
	if o.slots[i] == nil {
		o.slots[i] = slotTimes(p, o.now)
	}
	if slots := o.slots[i]; len(slots) > 0 {
		k, _ := slices.BinarySearch(slots[1:], end)
		copy(slots[:k], slots[1:k+1])
		slots[k] = end
		o.slotAt[i] = max(o.slotAt[i], slots[0])
	}
	if w.lane.alone && f.slotAt <= o.now {
		o.slotAt[i] = max(o.slotAt[i], end)
	}
}

// granted says that what was given last at a builder is a lease now.
func (o *outlook) granted(p *place) {
	i := p.index
	o.given[i] = o.given[i][:len(o.given[i])-1]
	o.crowd[i] = crowdOf(p)
	o.changes[i] = p.store.changes.Load()
}

func crowdOf(p *place) float64 { return crowding * float64(p.busy) / float64(max(p.MaxJobs, 1)) }

// mostSlots is how many slots of a builder a plan keeps apart.
const mostSlots = 256

// slotTimes are the times at which the slots of a builder become free.
func slotTimes(p *place, now float64) []float64 {
	n := min(p.MaxJobs, mostSlots)
	times := make([]float64, 0, n)
	for range min(p.MaxJobs-p.busy, n) {
		times = append(times, now)
	}
	// After a reload more may be taken than there is.
	for _, l := range p.leases[min(max(p.busy-p.MaxJobs, 0), len(p.leases)):] {
		if len(times) == n {
			break
		}
		times = append(times, l.end)
	}
	return times
}
