package simulate

import (
	"fmt"
	"slices"
	"time"
)

// Bound is a time that no placement can beat: what is wanted, each build once and
// with no time for transfers, divided by the slots that can do it, or the longest
// chain of dependencies on the fastest machines, whichever is more. It counts as
// if everything were asked for at the start.
func (t *Trace) Bound() time.Duration {
	return max(t.longestChain(), t.workBound())
}

func (t *Trace) longestChain() time.Duration {
	ends := make([]time.Duration, len(t.Builds))
	for i, wanted := range t.wanted() {
		if !wanted {
			continue // whoever has it had it before
		}
		b := &t.Builds[i]
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
// they must do at least the work of the builds that can go nowhere else. Work
// counts as at the highest factor of its system.
func (t *Trace) workBound() time.Duration {
	classes := t.classes()
	var bound time.Duration
	for _, c := range classes {
		var work time.Duration
		for _, d := range classes {
			if subset(d.machines, c.machines) {
				work += d.work
			}
		}
		bound = max(bound, time.Duration(float64(work)/t.capacity(c.machines)))
	}
	return bound
}

type class struct {
	machines []int
	work     time.Duration
}

func (t *Trace) classes() []class {
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
		classes[at].work += time.Duration(float64(b.Work) / t.factor(b, fit))
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
