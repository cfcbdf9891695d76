package route

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// defaultQueueLimit is how many requests may wait. One takes about 1 KiB besides
// its inputs and the goroutine that waits.
const defaultQueueLimit = 10_000

// Options configure a Router. The zero value is usable.
type Options struct {
	// Now is the clock; nil means time.Now. It is called from any goroutine and with
	// the router locked. Whoever brings a clock of another pace calls Recheck after
	// moving it.
	Now func() time.Time
	// Rule is the rule of choice; nil means LeastLoad.
	Rule Rule
	// QueueLimit is how many requests may wait; 0 means 10,000.
	QueueLimit int
	// PathLimit is how many store paths are known by number; 0 means 131,072.
	// Each takes about 120 bytes.
	PathLimit int
}

// Router gives out places on builders. Its methods are safe for concurrent use.
type Router struct {
	now        func() time.Time
	rule       Rule
	queueLimit int
	paths      *paths

	mu sync.Mutex // above paths.mu; guards what follows
	// byName also has removed builders for as long as leases are held there.
	byName map[string]*place
	// places are the configured builders by name. up and free are their indexes.
	places []*place
	up     bitset
	free   bitset
	// stirred are the builders whose reason to wait for has changed since the last
	// settle.
	stirred bitset

	principals map[string]*principal
	lanes      map[string]*lane
	waiting    int
	lastSeq    uint64

	timer  *time.Timer
	wakeAt time.Time // when timer fires; zero if it is not needed
}

// New makes a router without builders.
func New(opts Options) *Router {
	r := &Router{
		now:        opts.Now,
		rule:       opts.Rule,
		queueLimit: positiveOr(opts.QueueLimit, defaultQueueLimit),
		paths:      newPaths(positiveOr(opts.PathLimit, defaultPathLimit)),
		byName:     map[string]*place{},
		principals: map[string]*principal{},
		lanes:      map[string]*lane{},
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.rule == nil {
		r.rule = LeastLoad{}
	}
	return r
}

func positiveOr(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}

// SetBuilders replaces the builders; of two with one name the later counts. A
// builder that was there before keeps its health and its taken slots. Leases on
// one that is gone stay valid until they are released. Requests that wait are
// examined anew: who can no longer be served by anybody fails at once.
func (r *Router) SetBuilders(builders []Builder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.places
	r.places = r.resolve(builders)
	r.dropMissing(before)
	r.index()
	r.paths.keep(r.places)
	for _, l := range r.lanes {
		r.examine(l)
	}
	r.recount()
	r.signalAll()
	r.settle()
}

// resolve finds or makes the place of each builder, in the order of names.
func (r *Router) resolve(builders []Builder) []*place {
	places := make([]*place, 0, len(builders))
	for _, b := range builders {
		p, known := r.byName[b.Name]
		if !known {
			p = &place{}
			r.byName[b.Name] = p
		}
		p.Builder = b
		if !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	slices.SortFunc(places, func(a, b *place) int { return strings.Compare(a.Name, b.Name) })
	return places
}

// dropMissing forgets the builders of before that are not configured any more,
// unless leases are held there.
func (r *Router) dropMissing(before []*place) {
	for _, p := range before {
		if slices.Contains(r.places, p) {
			continue
		}
		p.index = -1
		p.health = health{}
		if p.busy == 0 {
			delete(r.byName, p.Name)
		}
	}
}

// index numbers the places and fills the sets of those numbers.
func (r *Router) index() {
	r.up, r.free, r.stirred = nil, nil, nil
	for i, p := range r.places {
		p.index = i
		r.noteState(p)
	}
}

// noteState brings up and free in line with a place that has changed.
func (r *Router) noteState(p *place) {
	r.up.put(p.index, p.up())
	r.free.put(p.index, p.free())
}

// settle restores, after any change, what holds whenever the lock is free: no
// request waits that could be placed, or that waits for nothing. It tells those
// who wait what changed for them.
func (r *Router) settle() {
	now := r.now()
	r.endSuspensions(now)
	r.failHopeless(now)
	r.dispatch()
	r.signalChanged()
	r.arm(now)
}

// dispatch places requests until none can be, the earliest first.
func (r *Router) dispatch() {
	for _, l := range r.lanes {
		l.tried = 0
	}
	for {
		l := r.nextLane()
		if l == nil {
			return
		}
		w := l.waiters[l.tried]
		decision := r.rank(l, &w.req)
		if decision.Builder == "" {
			l.tried++ // the rule wants it to wait for a busy builder
			continue
		}
		r.grant(w, decision)
	}
}

// nextLane returns the lane of the earliest request that may be placable.
func (r *Router) nextLane() *lane {
	if r.free.empty() {
		return nil
	}
	var first *lane
	for _, l := range r.lanes {
		if l.tried == len(l.waiters) || l.principal.atLimit() || !l.fits.overlaps(r.free) {
			continue
		}
		if first == nil || l.waiters[l.tried].seq < first.waiters[first.tried].seq {
			first = l
		}
	}
	return first
}

// grant takes the slot that decision names for w and lets it go.
func (r *Router) grant(w *waiter, decision Decision) {
	p, owner := r.byName[decision.Builder], w.lane.principal
	p.busy++
	owner.busy++
	trial := p.trial && !p.trying
	p.trying = p.trying || trial
	r.noteState(p)
	r.remove(w)
	w.lease = &Lease{router: r, place: p, principal: owner, decision: decision, inputs: w.req.Inputs, trial: trial}
	close(w.done)
}

// Intern returns the number of a store path, for Inputs and NoteHeld.
func (r *Router) Intern(path string) PathID { return r.paths.intern(path) }

// NoteHeld remembers that a builder holds paths, in addition to what is known.
// Builders that are not configured are ignored.
func (r *Router) NoteHeld(builder string, ids ...PathID) { r.paths.note(builder, ids) }

// Forget drops what is known of the paths that a builder holds.
func (r *Router) Forget(builder string) { r.paths.forget(builder) }
