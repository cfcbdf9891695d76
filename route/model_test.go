package route

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestQueueAgainstModel drives the router with every event in any order and checks
// after each what must hold whenever nothing moves. It guards against lost wake-ups
// (a slot is free, somebody waits who could have it, and nobody notices), against
// slots that are given twice or lost, and against overtaking. It needs no goroutine:
// Acquire only adds the wait to what it calls here.
func TestQueueAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{now: frozen(), health: map[string]*health{}, limits: map[string]int{}, told: map[*waiter]bool{}}
		m.router = New(Options{Now: func() time.Time { return m.now }, QueueLimit: 12})
		m.reload(t)
		t.Repeat(map[string]func(*rapid.T){
			"":        m.check,
			"ask":     m.ask,
			"release": m.release,
			"leave":   m.leave,
			"join":    m.join,
			"reload":  m.reload,
			"health":  m.setUp,
			"suspend": m.suspend,
			"time":    m.pass,
		})
	})
}

// model knows what was asked and what was answered, and nothing of lanes or sets.
type model struct {
	router   *Router
	now      time.Time
	builders []Builder
	health   map[string]*health // of the configured builders
	limits   map[string]int     // of principals, by their newest requests
	waiting  []*waiter          // by arrival
	leases   []*Lease
	told     map[*waiter]bool // that their wait is over
}

// mostly draws one value far more often than others: the others are what breaks
// things, but where they are frequent nobody gets as far as the queue.
func mostly[T any](t *rapid.T, label string, usual T, others ...T) T {
	if rapid.IntRange(0, 3).Draw(t, label+" is unusual") > 0 {
		return usual
	}
	return rapid.SampledFrom(others).Draw(t, label)
}

func (m *model) ask(t *rapid.T) {
	for range rapid.IntRange(1, 4).Draw(t, "requests") {
		m.askOne(t)
	}
}

// asker draws a principal; its newest limit counts.
func (m *model) asker(t *rapid.T) Asker {
	a := Asker{
		Principal:        rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "principal"),
		PrincipalMaxJobs: mostly(t, "principal's limit", 3, 0, 1, 2),
		Class:            mostly(t, "class", Normal, Interactive, Bulk),
	}
	m.limits[a.Principal] = a.PrincipalMaxJobs
	return a
}

// other is a principal with the limit that it has already: of one that has a turn
// nothing new is taken.
func (m *model) other(t *rapid.T) Asker {
	name := rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "other")
	return Asker{Principal: name, PrincipalMaxJobs: m.limits[name]}
}

// join has another principal wait for what waits already.
func (m *model) join(t *rapid.T) {
	if len(m.waiting) == 0 {
		t.Skip("nobody waits")
	}
	m.router.join(m.waiting[rapid.IntRange(0, len(m.waiting)-1).Draw(t, "waiter")], m.other(t))
}

func (m *model) askOne(t *rapid.T) {
	req := Request{
		Asker:    m.asker(t),
		Domain:   mostly(t, "domain", "d", "e"),
		System:   mostly(t, "system", "x", "y", builtin),
		Features: mostly(t, "features", nil, []string{"kvm"}, []string{"big"}, []string{"big", "kvm"}),
		Needs:    mostly(t, "needs", nil, map[string]int64{"mem": 1}, map[string]int64{"mem": 3}),
		Alone:    mostly(t, "alone", false, true),
		Job:      mostly(t, "job", "", "x", "y"),
		Patience: time.Duration(rapid.IntRange(0, 5).Draw(t, "patience")) * time.Second,
	}
	for _, name := range mostly(t, "exclude", nil, []string{"b1"}, []string{"b2", "b3"}) {
		req.Exclude = append(req.Exclude, Exclusion{Builder: name})
	}
	for range mostly(t, "others", 0, 1, 2) {
		req.Others = append(req.Others, m.other(t))
	}
	var told *waiter
	w, err := m.router.enter(req, func() { // within enter or later
		if told != nil {
			m.told[told] = true
		}
	})
	if told = w; w != nil && w.over() {
		m.told[w] = true
	}
	switch {
	case err == nil:
		m.waiting = append(m.waiting, w)
		m.collect(t)
	case !errors.Is(err, ErrQueueFull) || len(m.waiting) < 12:
		t.Fatalf("refused with %v while %d wait", err, len(m.waiting))
	}
}

func (m *model) release(t *rapid.T) {
	if len(m.leases) == 0 {
		t.Skip("no lease")
	}
	i := rapid.IntRange(0, len(m.leases)-1).Draw(t, "lease")
	lease := m.leases[i]
	m.leases = slices.Delete(m.leases, i, i+1)
	switch rapid.IntRange(0, 2).Draw(t, "end") {
	case 0:
		lease.Began()
		lease.Built()
	case 1:
		lease.Transferred(1<<20, time.Second)
	}
	lease.Release()
	lease.Release()
}

func (m *model) leave(t *rapid.T) {
	if len(m.waiting) == 0 {
		t.Skip("nobody waits")
	}
	i := rapid.IntRange(0, len(m.waiting)-1).Draw(t, "waiter")
	w := m.waiting[i]
	m.waiting = slices.Delete(m.waiting, i, i+1)
	m.router.leave(w)
}

func (m *model) reload(t *rapid.T) {
	m.builders = nil
	for _, name := range mostly(t, "builders", []string{"b1", "b2", "b3"}, nil, []string{"b1"}, []string{"b2", "b3"}) {
		b := Builder{
			Name: name, Systems: map[string]float64{}, MaxJobs: mostly(t, "jobs", 1, 0, 2, 3),
			Features:          mostly(t, "supported", []string{"kvm"}, nil, []string{"big"}),
			MandatoryFeatures: mostly(t, "mandatory", nil, []string{"big"}),
			SpeedFactor:       mostly(t, "speed", 1.0, 0, 2),
			Resources:         mostly(t, "resources", map[string]int64{"mem": 3}, nil),
			Domains:           mostly(t, "domains", []string{"d", "e"}, nil, []string{"d"}, []string{"e"}),
		}
		for _, system := range mostly(t, "systems", []string{"x"}, nil, []string{"y"}, []string{"x", "y"}) {
			b.Systems[system] = 1
		}
		m.builders = append(m.builders, b)
	}
	before := m.health
	m.health = map[string]*health{}
	for _, b := range m.builders {
		m.health[b.Name] = &health{}
		if before[b.Name] != nil {
			m.health[b.Name] = before[b.Name]
		}
	}
	m.router.SetBuilders(m.builders)
}

func (m *model) setUp(t *rapid.T) {
	name, up := rapid.SampledFrom([]string{"b1", "b2", "b3"}).Draw(t, "builder"), mostly(t, "up", true, false)
	if h := m.health[name]; h != nil {
		h.down = !up
	}
	m.router.SetUp(name, up, "told so")
}

func (m *model) suspend(t *rapid.T) {
	name := rapid.SampledFrom([]string{"b1", "b2", "b3"}).Draw(t, "builder")
	until := m.now.Add(time.Duration(rapid.IntRange(-1, 5).Draw(t, "seconds")) * time.Second)
	if h := m.health[name]; h != nil {
		h.until = until
	}
	m.router.Suspend(name, "told so", until)
}

func (m *model) pass(t *rapid.T) {
	m.now = m.now.Add(time.Duration(rapid.IntRange(0, 4).Draw(t, "seconds")) * time.Second)
	m.router.Recheck()
}

// check looks at what came of the last event.
func (m *model) check(t *rapid.T) {
	m.collect(t)
	for _, w := range m.waiting {
		m.checkWaits(t, w)
	}
	m.checkStatus(t)
}

// collect takes those whose wait is over out of waiting.
func (m *model) collect(t *rapid.T) {
	var still []*waiter
	var granted []*waiter
	for _, w := range m.waiting {
		switch {
		case w.lease != nil:
			granted = append(granted, w)
			m.leases = append(m.leases, w.lease)
		case w.err != nil:
			m.checkFailure(t, w)
		default:
			still = append(still, w)
		}
		if w.over() != m.told[w] {
			t.Fatal("over, but nobody is told")
		}
	}
	m.waiting = still
	for _, w := range granted {
		m.checkGrant(t, w)
	}
}

// checkGrant: on a builder that may be used, within its slots and the principal's.
func (m *model) checkGrant(t *rapid.T, w *waiter) {
	b := m.builder(w.lease.Builder())
	if b == nil || !m.usable(w, b) || m.busy(b.Name) > b.MaxJobs || m.overLimit(w) || m.overTaken(w, b) {
		t.Fatalf("request %d should not be on %s", w.seq, w.lease.Builder())
	}
}

// overTaken: more of a resource than there is, or somebody beside one that wanted to
// be alone.
func (m *model) overTaken(w *waiter, b *Builder) bool {
	taken, alone, all := int64(0), false, 0
	for _, l := range m.leases {
		if l.Builder() == b.Name {
			taken += l.needs["mem"]
			alone = alone || l.isAlone
			all++
		}
	}
	return taken > b.Resources["mem"] && len(w.req.Needs) > 0 || alone && all > 1
}

// checkFailure: of nobody who has a builder that is up.
func (m *model) checkFailure(t *rapid.T, w *waiter) {
	var none *NoBuilderError
	if !errors.As(w.err, &none) {
		t.Fatalf("request %d failed with %v", w.seq, w.err)
	}
	fits, excluded := false, false
	for i := range m.builders {
		b := &m.builders[i]
		if m.usable(w, b) {
			t.Fatalf("request %d failed although %s is up: %v", w.seq, b.Name, w.err)
		}
		if m.fits(w, b) && !m.excludes(w, b) && !m.health[b.Name].down {
			t.Fatalf("request %d failed although %s is only suspended: %v", w.seq, b.Name, w.err)
		}
		fits = fits || m.fits(w, b) && !m.excludes(w, b)
		excluded = excluded || m.fits(w, b)
	}
	want := NoneMatches
	switch {
	case fits:
		want = AllDown
	case excluded:
		want = AllExcluded
	}
	if none.Kind != want {
		t.Fatalf("request %d failed with kind %d, want %d: %v", w.seq, none.Kind, want, none)
	}
}

// checkWaits: rightly so, because there is hope but no place: who waits although a
// builder is free waits for a better one that is not.
func (m *model) checkWaits(t *rapid.T, w *waiter) {
	hope, up, free, busy := false, false, false, false
	for i := range m.builders {
		b := &m.builders[i]
		if !m.fits(w, b) || m.excludes(w, b) {
			continue
		}
		hope = true
		up = up || !m.health[b.Name].down
		if m.usable(w, b) {
			free = free || m.busy(b.Name) == 0
			busy = busy || m.busy(b.Name) > 0
		}
	}
	if free && !busy && !m.atLimit(w) && !m.special(w) {
		t.Fatalf("request %d waits though all its builders are free", w.seq)
	}
	if !hope || !up && w.req.Patience == 0 {
		t.Fatalf("request %d waits for nothing", w.seq)
	}
	if !up && !w.deadline(w.lane).After(m.now) {
		t.Fatalf("request %d waits longer than it has patience", w.seq)
	}
	if ahead := m.router.stateOf(w).Ahead; ahead < 0 || ahead >= len(m.waiting) {
		t.Fatalf("request %d counts %d ahead of %d that wait", w.seq, ahead, len(m.waiting))
	}
}

// special: others that need more than a slot may have a builder kept for them.
func (m *model) special(w *waiter) bool {
	return slices.ContainsFunc(m.waiting, func(other *waiter) bool { return other.lane.special() })
}

// checkStatus: the router counts what the model counts, and keeps nothing that is of
// no use any more.
func (m *model) checkStatus(t *rapid.T) {
	status := m.router.Status()
	for _, b := range status.Builders {
		if b.Busy != m.busy(b.Name) || b.Removed != (m.builder(b.Name) == nil) || b.Removed && b.Busy == 0 {
			t.Fatalf("builder %+v, but %d leases", b, m.busy(b.Name))
		}
	}
	if len(status.Queue) != len(m.waiting) || m.router.waiting != len(m.waiting) {
		t.Fatalf("%d in the queue, %d counted, want %d", len(status.Queue), m.router.waiting, len(m.waiting))
	}
	if jobs := len(m.router.byJob); jobs > len(m.waiting) {
		t.Fatalf("%d jobs of %d that wait", jobs, len(m.waiting))
	}
	if len(m.waiting)+len(m.leases) == 0 && len(m.router.lanes)+len(m.router.principals) != 0 {
		t.Fatalf("%d lanes and %d principals for nobody", len(m.router.lanes), len(m.router.principals))
	}
}

func (m *model) builder(name string) *Builder {
	i := slices.IndexFunc(m.builders, func(b Builder) bool { return b.Name == name })
	if i < 0 {
		return nil
	}
	return &m.builders[i]
}

func (m *model) fits(w *waiter, b *Builder) bool {
	_, listed := b.Systems[w.req.System]
	all := append(slices.Clone(b.Features), b.MandatoryFeatures...)
	return slices.Contains(b.Domains, w.req.Domain) && (listed || w.req.System == builtin) && b.MaxJobs > 0 &&
		subset(w.req.Features, all) && subset(b.MandatoryFeatures, w.req.Features) && b.Resources["mem"] >= w.req.Needs["mem"]
}

func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

func (m *model) excludes(w *waiter, b *Builder) bool {
	return slices.ContainsFunc(w.req.Exclude, func(ex Exclusion) bool { return ex.Builder == b.Name })
}

// usable is whether w could run on b if there were a slot.
func (m *model) usable(w *waiter, b *Builder) bool {
	h := m.health[b.Name]
	return m.fits(w, b) && !m.excludes(w, b) && !h.down && !h.until.After(m.now)
}

func (m *model) busy(builder string) int {
	return m.count(func(l *Lease) bool { return l.Builder() == builder })
}

func (m *model) running(principal string) int {
	return m.count(func(l *Lease) bool { return l.principal.name == principal })
}

func (m *model) count(counts func(*Lease) bool) int {
	n := 0
	for _, l := range m.leases {
		if counts(l) {
			n++
		}
	}
	return n
}

// full is whether a principal has as many places as it may.
func (m *model) full(principal string) bool {
	limit := m.limits[principal]
	return limit > 0 && m.running(principal) >= limit
}

// atLimit is whether all that wait for w are.
func (m *model) atLimit(w *waiter) bool {
	return m.full(w.req.Principal) && !slices.ContainsFunc(w.turns, func(t *waiter) bool { return !m.full(t.req.Principal) })
}

func (m *model) overLimit(w *waiter) bool {
	limit := m.limits[w.lease.principal.name]
	return limit > 0 && m.running(w.lease.principal.name) > limit
}
