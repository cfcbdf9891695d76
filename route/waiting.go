package route

import (
	"fmt"
	"slices"
	"strings"
)

// maxNamed is how many builders a sentence names.
const maxNamed = 8

// Waiting is why a request waits.
type Waiting struct {
	// Ahead is the number of earlier requests that want a builder which this one
	// could have, or a place of the same principal's.
	Ahead int
	// Limit says for people that the principal holds as many places as it may;
	// else empty.
	Limit string
	// Builders are those of the domain, each with what is in the way; first those
	// that could run it. It is shared: do not change it.
	Builders []BuilderReason
}

// Position is the place in the queue, 1 being next.
func (w Waiting) Position() int { return w.Ahead + 1 }

// String is a sentence for people: "waiting: 3 ahead; b1 2/2 busy, b2 lacks
// feature kvm".
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
	}
	for i, b := range w.Builders[:min(len(w.Builders), maxNamed)] {
		s.WriteString(separator(i) + b.Name + " " + b.Reason)
	}
	if more := len(w.Builders) - maxNamed; more > 0 {
		fmt.Fprintf(&s, " and %d more", more)
	}
	return s.String()
}

func separator(i int) string {
	if i == 0 {
		return "; "
	}
	return ", "
}

func (w Waiting) equal(v Waiting) bool {
	return w.Ahead == v.Ahead && w.Limit == v.Limit && slices.Equal(w.Builders, v.Builders)
}

// teller calls onWait, unless nil, for one request whenever there is news.
type teller struct {
	router *Router
	w      *waiter
	onWait func(Waiting)
	told   Waiting
}

func (t *teller) news() {
	if t.onWait == nil {
		return
	}
	news, waits := t.router.describe(t.w)
	if waits && !news.equal(t.told) {
		t.onWait(news)
		t.told = news
	}
}

// describe returns what is to be told of w, if it still waits.
func (r *Router) describe(w *waiter) (Waiting, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w.over() {
		return Waiting{}, false
	}
	w.tellAt = nextNews(w.ahead)
	l := w.lane
	return Waiting{Ahead: w.ahead, Limit: l.principal.atLimitReason(), Builders: r.reasons(l)}, true
}
