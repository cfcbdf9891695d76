package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Bound is a time that no placement can beat: what is wanted, each build once and
// with no time for transfers, divided by the slots that can do it, or the longest
// chain of dependencies on the fastest machines, whichever is more. It counts as
// if everything were asked for at the start.
func (t *Trace) Bound() time.Duration {
	return t.boundFrom(make([]time.Duration, len(t.Builds)))
}

// BoundAsAsked is Bound for builds that begin when they were asked for, or later.
func (t *Trace) BoundAsAsked() time.Duration { return t.boundFrom(t.asked()) }

// asked is when each build was asked for first; 0 for those that nobody wants.
func (t *Trace) asked() []time.Duration {
	first := make([]time.Duration, len(t.Builds))
	seen := make([]bool, len(t.Builds))
	for _, c := range t.Clients {
		for _, ask := range c.Asks {
			if !seen[ask.Build] || ask.At < first[ask.Build] {
				first[ask.Build], seen[ask.Build] = ask.At, true
			}
		}
	}
	return first
}

// boundFrom is the bound for builds of which each may begin at a time of its own.
func (t *Trace) boundFrom(starts []time.Duration) time.Duration {
	return max(t.longestChain(starts), t.workBound(starts))
}

func (t *Trace) longestChain(starts []time.Duration) time.Duration {
	ends := make([]time.Duration, len(t.Builds))
	for i, wanted := range t.wanted() {
		if !wanted {
			continue // whoever has it had it before
		}
		b := &t.Builds[i]
		ends[i] = starts[i]
		for _, dep := range b.Deps {
			ends[i] = max(ends[i], ends[dep])
		}
		ends[i] += t.atBest(b)
	}
	return slices.Max(append(ends, 0))
}

func (t *Trace) atBest(b *Build) time.Duration {
	var best time.Duration
	for _, m := range t.fitting(b) {
		if took := t.Machines[m].takes(b); best == 0 || took < best {
			best = took
		}
	}
	return best
}

// workBound looks at each set of machines that is all that some builds can have:
// from any time on they must do at least the work that may begin only then and can go
// nowhere else. Work counts as at the highest factor of its system.
func (t *Trace) workBound(starts []time.Duration) time.Duration {
	classes := t.classes(starts)
	var bound time.Duration
	for _, c := range classes {
		var pieces []piece
		for _, d := range classes {
			if subset(d.machines, c.machines) {
				pieces = append(pieces, d.pieces...)
			}
		}
		slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(b.start, a.start) })
		var work time.Duration
		for _, p := range pieces {
			work += p.work
			bound = max(bound, p.start+time.Duration(float64(work)/t.capacity(c.machines)))
		}
	}
	return bound
}

type class struct {
	machines []int
	pieces   []piece
}

// piece is work that may begin at a time.
type piece struct{ start, work time.Duration }

func (t *Trace) classes(starts []time.Duration) []class {
	byKey := map[string]int{}
	var classes []class
	for i, wanted := range t.wanted() {
		if !wanted {
			continue
		}
		b := &t.Builds[i]
		fit := t.fitting(b)
		key := fmt.Sprint(fit)
		at, known := byKey[key]
		if !known {
			at = len(classes)
			byKey[key] = at
			classes = append(classes, class{machines: fit})
		}
		work := time.Duration(float64(b.Work) / t.factor(b, fit))
		classes[at].pieces = append(classes[at].pieces, piece{starts[i], work})
	}
	return classes
}

// factor is the highest that a build's system has on some machines.
func (t *Trace) factor(b *Build, machines []int) float64 {
	best := 0.0
	for _, m := range machines {
		best = max(best, t.Machines[m].speed(b.System)/t.Machines[m].Speed)
	}
	return best
}

func (t *Trace) capacity(machines []int) float64 {
	sum := 0.0
	for _, i := range machines {
		sum += float64(t.Machines[i].Slots) * t.Machines[i].Speed
	}
	return sum
}

func subset(of, in []int) bool {
	for _, x := range of {
		if !slices.Contains(in, x) {
			return false
		}
	}
	return true
}
