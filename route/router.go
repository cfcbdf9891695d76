package route

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// defaultQueueLimit is how many requests may wait. One takes about 1 KiB and 8 bytes
// for each builder, besides its inputs and the goroutine that waits.
const defaultQueueLimit = 10_000

// defaultStarveAfter is the age from which a request goes before younger ones.
const defaultStarveAfter = 15 * time.Minute

// Options configure a Router. The zero value is usable.
type Options struct {
	// Now is the clock; nil means time.Now. It is called from any goroutine and with
	// the router locked. Whoever brings a clock calls Recheck when it comes to NextDue,
	// and after moving it.
	Now func() time.Time
	// QueueLimit is how many requests may wait; 0 means 10,000.
	QueueLimit int
	// PathLimit is how many store paths are known by number; 0 means 131,072.
	// Each takes about 120 bytes.
	PathLimit int
	// StarveAfter is the age from which a request goes before all younger ones; 0
	// means 15 min.
	StarveAfter time.Duration
	// History is what an earlier router has learned.
	History History
}

// Router gives out places on builders. Its methods are safe for concurrent use.
type Router struct {
	now         func() time.Time
	virtual     bool // somebody else calls Recheck
	epoch       time.Time
	queueLimit  int
	starveAfter time.Duration
	paths       *paths
	estimates   *estimates

	mu sync.Mutex // above paths.mu and estimates.mu; guards what follows
	// byName also has removed builders for as long as leases are held there.
	byName map[string]*place
	// places are the configured builders by name. up, hopeful and free are their
	// indexes, and numbering counts how often these were given out.
	places    []*place
	numbering uint64
	up        bitset
	hopeful   bitset
	free      bitset
	// stirred are the builders whose reason to wait for has changed since the last
	// settle.
	stirred bitset
	// unsettled says that some lane may have lost its last builder, or got one.
	unsettled bool
	// paces are what was learned of builders, also of removed ones.
	paces map[string]*pace

	principals map[string]*principal
	askers     map[string]Asker // what SetAskers said of principals
	// served is what the principal had been served that was served last: who comes
	// new begins there.
	served float64
	lanes  map[string]*lane
	// hopeless are the lanes whose builders are all down.
	hopeless map[*lane]bool
	oldest   *waiter // of all that wait; the younger ones follow
	newest   *waiter
	byJob    map[string]map[*waiter]bool // of those that wait
	waiting  int
	work     float64 // of all that wait, in seconds at speed 1
	lastSeq  uint64
	planner  planner

	// over are those whose wait has ended since the lock was taken.
	over []*waiter

	timer  *time.Timer
	planAt time.Time // when to plan anew though nobody says anything; zero if never
	wakeAt time.Time // when timer fires; zero if it is not needed
}

// New makes a router without builders.
func New(opts Options) *Router {
	r := &Router{
		now: opts.Now, virtual: opts.Now != nil,
		queueLimit:  positiveOr(opts.QueueLimit, defaultQueueLimit),
		starveAfter: positiveOr(opts.StarveAfter, defaultStarveAfter),
		paths:       newPaths(positiveOr(opts.PathLimit, defaultPathLimit)),
		estimates:   newEstimates(),
		byName:      map[string]*place{}, paces: map[string]*pace{},
		principals: map[string]*principal{}, lanes: map[string]*lane{}, hopeless: map[*lane]bool{}, byJob: map[string]map[*waiter]bool{},
	}
	if r.now == nil {
		r.now = time.Now
	}
	r.epoch = r.now()
	r.restore(opts.History)
	return r
}

func positiveOr[T int | time.Duration](n, otherwise T) T {
	if n > 0 {
		return n
	}
	return otherwise
}

// clock is the time in seconds since the router was made.
func (r *Router) clock() float64 { return r.now().Sub(r.epoch).Seconds() }

func (r *Router) lock() { r.mu.Lock() }

// unlock lets go and tells those whose wait has ended.
func (r *Router) unlock() {
	over := r.over
	r.over = nil
	r.mu.Unlock()
	for _, w := range over {
		w.ended()
	}
}

// SetStarveAfter changes Options.StarveAfter.
func (r *Router) SetStarveAfter(age time.Duration) {
	r.lock()
	defer r.unlock()
	r.starveAfter = positiveOr(age, defaultStarveAfter)
}

// SetAskers says how principals stand from now on, whatever their requests say, also
// those that wait already. Of all others the newest request counts.
func (r *Router) SetAskers(all []Asker) {
	r.lock()
	defer r.unlock()
	r.askers = make(map[string]Asker, len(all))
	for _, a := range all {
		r.askers[a.Principal] = a
		if p := r.principals[a.Principal]; p != nil {
			p.stand(a)
		}
	}
	r.settle()
}

// SetBuilders replaces the builders; of two with one name the later counts. A
// builder that was there before keeps its health, its taken slots and what was
// learned of it. Leases on one that is gone stay valid until they are released.
// Requests that wait are examined anew: who can no longer be served by anybody fails
// at once.
func (r *Router) SetBuilders(builders []Builder) {
	r.lock()
	defer r.unlock()
	before := r.places
	r.places = r.resolve(builders)
	r.dropMissing(before)
	moved := r.index()
	for _, l := range r.lanes {
		r.examine(l)
		for _, w := range l.waiters {
			w.follow(moved, len(r.places))
			w.signal()
		}
	}
	r.unsettled = true
	r.settle()
}

// resolve finds or makes the place of each builder, in the order of names.
func (r *Router) resolve(builders []Builder) []*place {
	places := make([]*place, 0, len(builders))
	for _, b := range builders {
		p, known := r.byName[b.Name]
		if !known {
			p = &place{index: -1, store: r.paths.newStore(), pace: r.paceOf(b.Name)}
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

func (r *Router) paceOf(builder string) *pace {
	p := r.paces[builder]
	if p == nil {
		p = &pace{}
		r.paces[builder] = p
	}
	return p
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
		r.paths.forget(p.store)
		if p.busy == 0 {
			delete(r.byName, p.Name)
			r.paths.drop(p.store)
		}
	}
}

// index numbers the places and fills the sets of those numbers. It returns for each
// place the number that it had before, -1 for new ones.
func (r *Router) index() (moved []int) {
	r.up, r.hopeful, r.free, r.stirred = nil, nil, nil, nil
	r.numbering++
	for i, p := range r.places {
		moved = append(moved, p.index)
		p.index = i
		r.noteState(p)
	}
	return moved
}

// noteState brings up, hopeful and free in line with a place that has changed.
func (r *Router) noteState(p *place) {
	r.up.put(p.index, p.up())
	r.hopeful.put(p.index, p.hopeful())
	r.free.put(p.index, p.free())
}

// settle restores, after any change, what holds whenever the lock is free: no
// request waits that could be placed and should be, or that waits for nothing. It
// tells those who wait what changed for them.
func (r *Router) settle() {
	now := r.now()
	r.endSuspensions(now)
	r.failHopeless(now)
	r.plan(now)
	r.signalChanged()
	r.arm(now)
}

// grant takes a slot for w.
func (r *Router) grant(w *waiter, p *place, f offer, terms Terms) {
	owner := w.lane.principal
	l := &Lease{
		router: r, place: p, builder: p.Name, principal: owner, terms: terms,
		system: w.lane.system, job: w.req.Job, needs: w.lane.needs, isAlone: w.lane.alone, inputs: w.req.Inputs,
		seconds: w.seconds, build: f.build, started: r.clock(), end: f.start + f.moves + f.build,
	}
	if f.moves > 0 || p.asleep {
		p.linkFree = f.start + f.moves
	}
	l.coming = r.paths.note(p.store, l.inputs)
	p.hold(l)
	owner.busy++
	r.charge(owner, w.seconds)
	r.noteState(p)
	r.remove(w)
	w.whole().lease = l
	r.over = append(r.over, w.whole())
}

// charge counts what a principal is given.
func (r *Router) charge(owner *principal, seconds float64) {
	r.served = max(r.served, owner.served)
	owner.served += seconds / owner.weight
}

// Intern returns the number of a store path, for Inputs and NoteHeld.
func (r *Router) Intern(path string) PathID { return r.paths.intern(path) }

// NoteHeld remembers that a builder holds paths, in addition to what is known.
// Builders that are not configured are ignored.
func (r *Router) NoteHeld(builder string, ids ...PathID) {
	s := r.storeOf(builder)
	if s == nil || len(ids) == 0 {
		return
	}
	inputs := make([]Input, len(ids))
	for i, id := range ids {
		inputs[i].ID = id
	}
	r.paths.note(s, inputs)
}

// Forget drops what is known of the paths that a builder holds.
func (r *Router) Forget(builder string) {
	if s := r.storeOf(builder); s != nil {
		r.paths.forget(s)
	}
}

func (r *Router) storeOf(builder string) *store {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.byName[builder]; p != nil && !p.removed() {
		return p.store
	}
	return nil
}
