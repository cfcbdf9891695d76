package route

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// principal is one that holds places or waits for them. Guarded by Router.mu.
type principal struct {
	name   string
	limit  int // 0 means none
	class  Class
	weight float64
	busy   int
	lanes  []*lane
	// served is what it was given, in estimated seconds by its weight.
	served float64
	// seq is when it began to want something; among equals the first goes first.
	seq uint64
	// virtual is served as the plan under way has it.
	virtual float64
}

func (p *principal) atLimit() bool { return p.limit > 0 && p.busy >= p.limit }

// atLimitReason says for people that it is at its limit, else nothing.
func (p *principal) atLimitReason() string {
	if !p.atLimit() {
		return ""
	}
	return fmt.Sprintf("%s runs %d of at most %d builds", p.name, p.busy, p.limit)
}

// lane is the queue of one principal's requests that the same builders match. So a
// plan looks at lanes, of which there are few, and not at requests that cannot be
// placed. Guarded by Router.mu.
type lane struct {
	shape
	key       string
	principal *principal
	// fits are the indexes of the builders that match, up or not, and options what
	// they are to a request; misfits are the others of the domain. All are by
	// examine.
	fits    bitset
	options []option
	misfits []Candidate
	waiters []*waiter // in their order; never empty for long
	// cursor is the next of them in the plan under way, and looked how many it has
	// looked at. closed says that it looks at no more.
	cursor, looked int
	closed         bool
	// downSince is since when all that fit are down; zero if they are not.
	downSince time.Time
}

// before is the order of requests of one principal: what most waits for first, then
// by arrival.
func (w *waiter) before(v *waiter) int {
	return cmp.Or(cmp.Compare(v.rank, w.rank), cmp.Compare(w.seq, v.seq))
}

// waiter is a request in the queue. Guarded by Router.mu but for the channel.
type waiter struct {
	req   Request
	lane  *lane
	seq   uint64 // order of arrival
	since time.Time
	// seconds is how long it will take, at speed 1, and rank that with what waits for
	// it.
	seconds, rank float64
	// weights are shared with its turns. They are by the numbers that builders had at
	// numbering until the request is in the queue, and follow reloads from then on.
	*weights
	numbering uint64
	// planned is the plan that has looked at it. In it the builder chosen was choice,
	// -1 for none, with a slot at slotAt.
	planned uint64
	choice  int
	slotAt  float64

	older, younger *waiter // in the queue by arrival; of turns there are none

	// turns are other places in the queue for the same build, those of principals who
	// wait for it too, and of is the waiter whose turn this is. Who comes first
	// decides.
	turns []*waiter
	of    *waiter

	changed chan struct{} // holds one: there may be news
	// ended is called, without the lock, when lease or err is set.
	ended func()
	lease *Lease
	err   error
}

// weights are what each builder is not known to hold of some inputs: lacks in bytes, as
// of the change of its store that is in as.
type weights struct {
	lacks []float32
	as    []uint32
}

func (w *waiter) over() bool { return w.lease != nil || w.err != nil }

// whole is the waiter itself or the one whose turn it is.
func (w *waiter) whole() *waiter {
	if w.of != nil {
		return w.of
	}
	return w
}

func (w *waiter) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// prepare makes a waiter with all that can be reckoned without the router standing
// still.
func (r *Router) prepare(req Request) *waiter {
	w := &waiter{req: req, since: r.now(), changed: make(chan struct{}, 1), choice: -1}
	seconds, tail := r.estimates.of(req.Job, req.System, r.clock())
	w.seconds, w.rank = seconds, seconds+tail
	r.mu.Lock()
	places := r.places // replaced, never changed
	w.numbering = r.numbering
	r.mu.Unlock()
	w.weights = r.weigh(places, req.Inputs)
	return w
}

// weigh sums what each builder lacks.
func (r *Router) weigh(places []*place, inputs []Input) *weights {
	n := &weights{lacks: make([]float32, len(places)), as: make([]uint32, len(places))}
	for i, p := range places {
		if len(inputs) == 0 {
			n.as[i] = always
			continue
		}
		bytes, changes := r.paths.missing(p.store, inputs)
		n.lacks[i], n.as[i] = float32(bytes), changes
	}
	return n
}

// always is the change by which nothing is missing, whatever comes.
const always = ^uint32(0)

// follow renumbers what is known of builders after a reload, with that of its turns.
// New ones are weighed when they are looked at.
func (w *waiter) follow(moved []int, n int) {
	w.choice = -1
	if w.of != nil {
		return
	}
	lacks, as := make([]float32, n), make([]uint32, n)
	for i, from := range moved {
		switch {
		case len(w.req.Inputs) == 0:
			as[i] = always
		case from >= 0 && from < len(w.lacks):
			lacks[i], as[i] = w.lacks[from], w.as[from]
		}
	}
	w.lacks, w.as = lacks, as
}

// renumber weighs anew if a reload came after prepare.
func (r *Router) renumber(w *waiter) {
	if w.numbering != r.numbering {
		w.weights, w.numbering = r.weigh(r.places, w.req.Inputs), r.numbering
	}
}

// enqueue puts a request into its lane.
func (r *Router) enqueue(w *waiter) {
	r.lastSeq++
	w.seq = r.lastSeq
	r.renumber(w)
	r.line(w)
	if w.older = r.newest; w.older != nil {
		w.older.younger = w
	} else {
		r.oldest = w
	}
	r.newest = w
	r.waiting++
	r.work += w.seconds
	if r.byJob[w.req.Job] == nil {
		r.byJob[w.req.Job] = map[*waiter]bool{}
	}
	r.byJob[w.req.Job][w] = true
	for _, a := range w.req.Others {
		r.addTurn(w, a)
	}
}

func (r *Router) line(w *waiter) {
	w.lane = r.laneOf(&w.req)
	w.lane.insert(w)
}

// insert puts a request in its place.
func (l *lane) insert(w *waiter) {
	i, _ := slices.BinarySearchFunc(l.waiters, w, (*waiter).before)
	l.waiters = slices.Insert(l.waiters, i, w)
}

// take takes it out; the plan under way goes on behind it.
func (l *lane) take(w *waiter) {
	i, found := slices.BinarySearchFunc(l.waiters, w, (*waiter).before)
	if !found {
		return
	}
	l.waiters = slices.Delete(l.waiters, i, i+1)
	if i < l.cursor {
		l.cursor--
	}
}

// estimateLimit is of how many that wait what was just learned is taken over.
const estimateLimit = 64

// estimateAgain takes over what was learned of a job for those of it that wait. No plan
// is under way.
func (r *Router) estimateAgain(job string) {
	if job == "" {
		return
	}
	n := 0
	for w := range r.byJob[job] {
		if n++; n > estimateLimit {
			return
		}
		seconds, tail := r.estimates.of(job, w.req.System, r.clock())
		r.work += seconds - w.seconds
		for _, t := range append([]*waiter{w}, w.turns...) {
			t.lane.take(t)
			t.seconds, t.rank = seconds, seconds+tail
			t.lane.insert(t)
		}
	}
}

// maxTurns bounds the turns of one build.
const maxTurns = 16

// addTurn gives a build a turn among the requests of another principal.
func (r *Router) addTurn(w *waiter, a Asker) {
	known := func(t *waiter) bool { return t.lane.principal.name == a.Principal }
	if w.over() || known(w) || len(w.turns) == maxTurns || slices.ContainsFunc(w.turns, known) {
		return
	}
	r.lastSeq++
	t := &waiter{
		req: w.req, seq: r.lastSeq, since: r.now(), seconds: w.seconds, rank: w.rank,
		weights: w.weights, choice: -1, changed: w.changed, of: w,
	}
	t.req.Asker, t.req.Others = a, nil
	r.line(t)
	w.turns = append(w.turns, t)
}

func (r *Router) laneOf(req *Request) *lane {
	owner := r.principalOf(req)
	s := req.shape()
	key := s.key(req.Principal)
	l := r.lanes[key]
	if l == nil {
		l = &lane{shape: s, key: key, principal: owner}
		owner.lanes = append(owner.lanes, l)
		r.lanes[key] = l
		r.examine(l)
	}
	if !l.fits.overlaps(r.hopeful) {
		r.unsettled = true
	}
	return l
}

// principalOf finds or makes the request's principal and sets what the policy says
// of it anew.
func (r *Router) principalOf(req *Request) *principal {
	p := r.principals[req.Principal]
	if p == nil {
		p = &principal{name: req.Principal, served: r.served}
		r.principals[req.Principal] = p
	}
	if len(p.lanes) == 0 {
		p.served = max(p.served, r.served) // what it did not want before is not owed to it
		p.seq = r.lastSeq
	}
	if a, set := r.askers[req.Principal]; set {
		p.stand(a)
	} else {
		p.stand(req.Asker)
	}
	return p
}

// stand takes over how the principal stands to others.
func (p *principal) stand(a Asker) {
	p.limit, p.class, p.weight = a.PrincipalMaxJobs, a.Class, orOne(a.Weight)
}

// remove takes a request out of the queue, with all its turns.
func (r *Router) remove(w *waiter) {
	w = w.whole()
	r.unline(w)
	for _, t := range w.turns {
		r.unline(t)
	}
	r.unlink(w)
	r.waiting--
	r.work -= w.seconds
	delete(r.byJob[w.req.Job], w)
	if len(r.byJob[w.req.Job]) == 0 {
		delete(r.byJob, w.req.Job)
	}
}

func (r *Router) unline(w *waiter) {
	l := w.lane
	l.take(w)
	if len(l.waiters) == 0 {
		l.closed = true
		delete(r.lanes, l.key)
		delete(r.hopeless, l)
		owner := l.principal
		owner.lanes = slices.DeleteFunc(owner.lanes, func(other *lane) bool { return other == l })
		r.dropIdle(owner)
	}
}

func (r *Router) unlink(w *waiter) {
	if w.older != nil {
		w.older.younger = w.younger
	} else {
		r.oldest = w.younger
	}
	if w.younger != nil {
		w.younger.older = w.older
	} else {
		r.newest = w.older
	}
	w.older, w.younger = nil, nil
}

// dropIdle forgets a principal that holds and wants nothing. One that comes back
// begins where those are that were served meanwhile.
func (r *Router) dropIdle(p *principal) {
	if p.busy == 0 && len(p.lanes) == 0 {
		delete(r.principals, p.name)
	}
}

// failHopeless ends the wait of requests that no builder matches, or whose
// patience with builders that are down is over.
func (r *Router) failHopeless(now time.Time) {
	if !r.unsettled && len(r.hopeless) == 0 {
		return
	}
	r.unsettled = false
	for _, l := range r.lanes {
		if l.fits.overlaps(r.hopeful) {
			l.downSince = time.Time{}
			delete(r.hopeless, l)
			continue
		}
		if l.downSince.IsZero() {
			l.downSince = now
		}
		r.hopeless[l] = true
		for _, w := range slices.Clone(l.waiters) {
			if w = w.whole(); w.over() {
				continue // with another of its turns
			}
			if l.fits.empty() || !w.deadline(l).After(now) {
				r.fail(w, r.noBuilder(w))
			}
		}
	}
}

// deadline is when the patience of w ends, if the builders of its lane stay down.
func (w *waiter) deadline(l *lane) time.Time {
	from := l.downSince
	if w.since.After(from) {
		from = w.since
	}
	return from.Add(w.req.Patience)
}

func (r *Router) fail(w *waiter, err error) {
	r.remove(w)
	w.err = err
	r.over = append(r.over, w)
}

func (r *Router) noBuilder(w *waiter) *NoBuilderError {
	l := w.lane
	err := &NoBuilderError{
		Kind: NoneMatches, Name: w.req.Name, Domain: l.domain, System: l.system, Features: l.features,
		Builders: r.reasons(l, len(r.places)),
	}
	switch {
	case !l.fits.empty():
		err.Kind = AllDown
	case len(l.misfits) > 0 && l.misfits[0].State == Excluded:
		err.Kind = AllExcluded
	}
	return err
}

// signalChanged wakes the first of those for whom a builder has changed; those far
// behind look by themselves.
func (r *Router) signalChanged() {
	if r.stirred.empty() {
		return
	}
	for _, l := range r.lanes {
		if l.fits.overlaps(r.stirred) {
			l.signalFirst()
		}
	}
	r.stirred = nil
}

// nearFront is how many of a lane are told of changes at once.
const nearFront = 10

func (l *lane) signalFirst() {
	for _, w := range l.waiters[:min(len(l.waiters), nearFront)] {
		w.signal()
	}
}
