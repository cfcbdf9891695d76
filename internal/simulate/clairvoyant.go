package simulate

import (
	"cmp"
	"slices"
	"time"
)

// clairvoyant places by estimated finish, with the right to wait for a machine
// that is busy now, and knows what nobody can: how long each build takes and what
// is still to come behind it. It shows how much better a rule could be.
type clairvoyant struct {
	run   *run
	rank  []time.Duration // by build: the longest chain that begins with it
	queue []seerWaiter    // by rank, the longest chain first
	ends  [][]*seerPlace  // by machine: what holds its slots
}

type seerWaiter struct {
	build   int
	granted func(place)
}

type seerPlace struct {
	seer  *clairvoyant
	build int
	on    *machine
	ends  time.Duration
}

func newClairvoyant(r *run) policy {
	return newMiddle(r, &clairvoyant{run: r, rank: r.trace.ranks(), ends: make([][]*seerPlace, len(r.machines))})
}

// ranks has for each build the time of the longest chain of wanted builds that
// begins with it, at speed 1.
func (t *Trace) ranks() []time.Duration {
	rank := make([]time.Duration, len(t.Builds))
	wanted := t.wanted()
	for i := range slices.Backward(t.Builds) {
		rank[i] += t.Builds[i].Work // it had the most of those behind it
		for _, dep := range t.Builds[i].Deps {
			if wanted[i] {
				rank[dep] = max(rank[dep], rank[i])
			}
		}
	}
	return rank
}

func (s *clairvoyant) submit(_ *client, build int, granted func(place)) {
	s.queue = append(s.queue, seerWaiter{build, granted})
	slices.SortStableFunc(s.queue, func(a, b seerWaiter) int { return cmp.Compare(s.rank[b.build], s.rank[a.build]) })
	s.settle()
}

func (s *clairvoyant) join(*client, int)          {}
func (s *clairvoyant) due() (time.Duration, bool) { return 0, false }
func (s *clairvoyant) recheck()                   {}

// settle lets go, in the order of ranks, each build that ends first on a machine
// with a free slot. Those that would rather wait hold nothing back: to count them
// as if they had slots already sends more builds to slow machines, and toolchains
// with them, and gains no time.
func (s *clairvoyant) settle() {
	s.queue = slices.DeleteFunc(s.queue, func(w seerWaiter) bool {
		m, end := s.earliest(w.build)
		if len(s.ends[m.index]) == m.Slots {
			return false
		}
		p := &seerPlace{s, w.build, m, end}
		s.ends[m.index] = append(s.ends[m.index], p)
		w.granted(p)
		return true
	})
}

// earliest is where a build would end first, and when.
func (s *clairvoyant) earliest(build int) (*machine, time.Duration) {
	end := func(m *machine) time.Duration {
		return s.begins(m, build) + m.takes(&s.run.trace.Builds[build])
	}
	best := s.run.least(s.run.fitting[build], func(m *machine) (float64, bool) { return float64(end(m)), true })
	return best, end(best)
}

// begins is when a machine has a slot and, after that, the inputs.
func (s *clairvoyant) begins(m *machine, build int) time.Duration {
	free := s.free(m)
	bytes := m.missing(s.run.inputs[build])
	if bytes == 0 {
		return free
	}
	return max(free, m.linkFree) + seconds(float64(bytes)/m.Link)
}

func (s *clairvoyant) free(m *machine) time.Duration {
	held := s.ends[m.index]
	if len(held) < m.Slots {
		return s.run.now
	}
	next := slices.MinFunc(held, func(a, b *seerPlace) int { return cmp.Compare(a.ends, b.ends) })
	return max(next.ends, s.run.now)
}

func (p *seerPlace) machine() *machine                { return p.on }
func (p *seerPlace) transferred(int64, time.Duration) {}
func (p *seerPlace) began() {
	p.ends = p.seer.run.now + p.on.takes(&p.seer.run.trace.Builds[p.build])
}

func (p *seerPlace) built() {
	held := &p.seer.ends[p.on.index]
	*held = slices.DeleteFunc(*held, func(other *seerPlace) bool { return other == p })
	p.seer.settle()
}
