package route

import (
	"cmp"
	"slices"
	"time"
)

// Builder is what the router knows of a builder. The router keeps the slices
// and the map: do not change them afterwards.
type Builder struct {
	// Name is unique. It breaks ties and is what people read.
	Name string
	// Systems has the speed of each system that the builder runs, as a factor to
	// SpeedFactor: an emulated system may have 0.1. 0 or less means 1.
	Systems map[string]float64
	// Features are supported; MandatoryFeatures are too, and a request that does
	// not require all of them is not for this builder.
	Features          []string
	MandatoryFeatures []string
	// MaxJobs is the number of builds at once. 0 or less: it takes none.
	MaxJobs int
	// SpeedFactor is the speed against other builders. 0 or less means 1.
	SpeedFactor float64
	// Domains are those that may use the builder and learn that it exists. None
	// means nobody.
	Domains []string
	// Resources are what its builds may take of it together, besides slots.
	Resources map[string]int64
}

// speed is how fast the builder runs builds of a system, 1 being usual.
func (b *Builder) speed(system string) float64 {
	return orOne(b.SpeedFactor) * orOne(b.Systems[system])
}

// orOne reads a factor as Nix does: what says nothing means 1.
func orOne(factor float64) float64 {
	if factor > 0 {
		return factor
	}
	return 1
}

// place is a builder with what happens there now. Guarded by Router.mu.
type place struct {
	Builder
	// index is the place in Router.places, which is its bit in every bitset of
	// builders; -1 once the builder is removed and only its leases are left.
	index int
	busy  int
	// taken are the resources of the leases, and alone is one that wants no other
	// beside it.
	taken map[string]int64
	alone *Lease
	// leases are by their expected end.
	leases []*Lease
	// linkFree is when the inputs of all leases will be there, and sending is how
	// many leases still wait for them.
	linkFree float64
	sending  int
	store    *store
	pace     *pace
	health
}

func (p *place) removed() bool { return p.index < 0 }

// free reports whether there is a slot for a plain build.
func (p *place) free() bool {
	return p.up() && p.busy < p.MaxJobs && p.alone == nil && !(p.trial && p.trying)
}

// hold takes a slot for a lease.
func (p *place) hold(l *Lease) {
	p.busy++
	for name, amount := range l.needs {
		if p.taken == nil {
			p.taken = map[string]int64{}
		}
		p.taken[name] += amount
	}
	if l.isAlone {
		p.alone = l
	}
	l.trial = p.trial && !p.trying
	p.trying = p.trying || l.trial
	p.sending++
	p.insert(l)
}

// drop gives it back.
func (p *place) drop(l *Lease) {
	p.busy--
	for name, amount := range l.needs {
		p.taken[name] -= amount
	}
	if p.alone == l {
		p.alone = nil
	}
	if l.trial {
		p.trying = false
	}
	p.arrived(l)
	p.remove(l)
}

// arrived notes that a lease waits for inputs no more.
func (p *place) arrived(l *Lease) {
	if l.arrived {
		return
	}
	l.arrived = true
	if p.sending--; p.sending == 0 {
		p.linkFree = 0
	}
}

func (p *place) insert(l *Lease) {
	i, _ := slices.BinarySearchFunc(p.leases, l.end, func(o *Lease, end float64) int { return cmp.Compare(o.end, end) })
	p.leases = slices.Insert(p.leases, i, l)
}

func (p *place) remove(l *Lease) {
	if i := slices.Index(p.leases, l); i >= 0 {
		p.leases = slices.Delete(p.leases, i, i+1)
	}
}

// overrun is what a build that takes longer than thought is thought to take yet, as
// a part of what it took: durations have long tails.
const overrun = 0.5

// refresh guesses anew when builds will end that should have.
func (p *place) refresh(now float64) {
	for len(p.leases) > 0 && p.leases[0].end <= now {
		l := p.leases[0]
		p.leases = p.leases[1:]
		l.end = now + max(1, overrun*(now-l.started))
		p.insert(l)
	}
}

// health is why a builder gets no builds although it is configured. The causes are
// independent: a connection that comes up does not end a suspension.
type health struct {
	down       bool
	downReason string
	// until is the end of the suspension; zero if there is none.
	until         time.Time
	suspendReason string
	// drained and overloaded are reasons, for people; empty if it is not.
	drained, overloaded string
	// asleep says that the builder must be woken first, which takes wake.
	asleep bool
	wake   time.Duration
	breaker
}

// up reports whether builds may be placed.
func (h *health) up() bool { return h.hopeful() && h.until.IsZero() && h.overloaded == "" }

// hopeful reports whether builds wait for the builder: it is up or will be so by
// itself.
func (h *health) hopeful() bool { return !h.down && h.drained == "" }

// trouble says for people why the builder is not up.
func (h *health) trouble() string {
	switch {
	case h.drained != "":
		return withReason("drained", h.drained)
	case h.down:
		return withReason("down", h.downReason)
	case !h.until.IsZero():
		return withReason("suspended until "+h.until.UTC().Format("15:04:05 MST"), h.suspendReason)
	}
	return withReason("overloaded", h.overloaded)
}

func withReason(state, reason string) string {
	if reason == "" {
		return state
	}
	return state + ": " + reason
}
