package route

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxNamed is how many builders a sentence names.
const maxNamed = 8

// Waiting is why a request waits.
type Waiting struct {
	// Ahead is about how many requests will be served before this one that want a
	// builder which it could have, or a place of the same principal's.
	Ahead int
	// Limit says for people that the principal holds as many places as it may;
	// else empty.
	Limit string
	// Builder is where the last plan had it go, and Wait how long until there is a
	// slot there for it, by estimate; empty if the plan did not come so far.
	Builder string
	Wait    time.Duration
	// Builders are those of the domain, each with what is in the way; first those
	// that could run it. There are More of them.
	Builders []BuilderReason
	More     int
}

// Position is the place in the queue, 1 being next.
func (w Waiting) Position() int { return w.Ahead + 1 }

// String is a sentence for people: "waiting: 3 ahead; for b1 in about 40s; b1 2/2
// busy, b2 lacks feature kvm".
func (w Waiting) String() string {
	var s strings.Builder
	s.WriteString("waiting: ")
	if w.Ahead == 0 {
		s.WriteString("next in the queue")
	} else {
		fmt.Fprintf(&s, "%d ahead", w.Ahead)
	}
	if w.Limit != "" {
		s.WriteString("; " + w.Limit)
	} else if w.Builder != "" {
		fmt.Fprintf(&s, "; for %s%s", w.Builder, inAbout(w.Wait))
	}
	for i, b := range w.Builders {
		s.WriteString(separator(i) + b.Name + " " + b.Reason)
	}
	if w.More > 0 {
		fmt.Fprintf(&s, " and %d more", w.More)
	}
	return s.String()
}

// inAbout says a time that is estimated, nothing if it is over.
func inAbout(d time.Duration) string {
	if d < time.Second {
		return ""
	}
	return " in about " + d.Round(time.Second).String()
}

func separator(i int) string {
	if i == 0 {
		return "; "
	}
	return ", "
}

// news reports whether v tells something that w does not. That a wait becomes
// shorter by itself is none, nor is a step far back in the queue.
func (w Waiting) news(v Waiting) bool {
	moved := w.Ahead - v.Ahead
	return moved < 0 || moved > 0 && moved >= w.Ahead/nearFront || w.Limit != v.Limit || w.Builder != v.Builder ||
		!slices.Equal(w.Builders, v.Builders)
}

// teller calls onWait, unless nil, for one request whenever there is news.
type teller struct {
	router *Router
	w      *waiter
	onWait func(Waiting)
	told   *Waiting
}

// news tells what is new and returns when to look again.
func (t *teller) news() time.Duration {
	if t.onWait == nil {
		return time.Hour
	}
	news, next := t.router.describe(t.w)
	if news != nil && (t.told == nil || t.told.news(*news)) {
		t.onWait(*news)
		t.told = news
	}
	return next
}

// describe returns what is to be told of w, nil if it does not wait any more, and
// when there may be more. In a long queue that takes longer, so that all those who
// wait do not keep the router from its work.
func (r *Router) describe(w *waiter) (*Waiting, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := tellEvery * time.Duration(1+r.waiting/1000)
	if w.over() {
		return nil, next
	}
	state := r.stateOf(w)
	return &state, next
}

func (r *Router) stateOf(w *waiter) Waiting { return r.stateIn(r.laneState(w.lane), w) }

// laneState is what is the same for all that wait in a lane.
func (r *Router) laneState(l *lane) Waiting {
	return Waiting{
		Limit: l.principal.atLimitReason(), Builders: r.reasons(l, maxNamed),
		More: max(0, len(l.options)+len(l.misfits)-maxNamed),
	}
}

func (r *Router) stateIn(state Waiting, w *waiter) Waiting {
	state.Ahead = r.ahead(w)
	for _, t := range w.turns {
		state.Ahead = min(state.Ahead, r.ahead(t))
	}
	state.Ahead = min(state.Ahead, r.waiting-1) // of builds with several turns all are counted
	if w.choice >= 0 && w.choice < len(r.places) && w.slotAt < never {
		state.Builder = r.places[w.choice].Name
		state.Wait = seconds(w.slotAt - r.clock())
	}
	return state
}

// ahead is about how many requests will be served before w that are in its way:
// those before it of its principal, all of a class before its own, none of one
// behind, and of others in its class as many as take their turns with it.
func (r *Router) ahead(w *waiter) int {
	own := 0
	for _, l := range w.lane.principal.lanes {
		if l.competes(w.lane) {
			i, _ := slices.BinarySearchFunc(l.waiters, w, (*waiter).before)
			own += i
		}
	}
	n := own
	for _, l := range r.lanes {
		if l.principal.name == w.lane.principal.name || !l.competes(w.lane) {
			continue
		}
		switch turn := l.principal; {
		case turn.class < w.lane.principal.class:
			n += len(l.waiters)
		case turn.class == w.lane.principal.class && byServed(turn, w.lane.principal) < 0:
			n += min(len(l.waiters), own+1)
		case turn.class == w.lane.principal.class:
			n += min(len(l.waiters), own)
		}
	}
	return n
}

func byServed(a, b *principal) int {
	switch {
	case a.served < b.served:
		return -1
	case a.served > b.served:
		return 1
	}
	return strings.Compare(a.name, b.name)
}

// competes reports whether a request of l and one of m can be in each other's way.
func (l *lane) competes(m *lane) bool {
	return l.principal == m.principal && l.principal.limit > 0 || l.fits.overlaps(m.fits)
}
