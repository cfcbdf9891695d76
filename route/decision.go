package route

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// State says how a builder stands to a request, from best to worst.
type State uint8

const (
	// Free builders match, are up and have what the request needs.
	Free State = iota
	// Busy builders match and are up.
	Busy
	// Overloaded builders match and take no builds for a while: because of what else
	// they do, or since they failed some.
	Overloaded
	// Down builders match but are down or drained.
	Down
	// Excluded builders match but the request must not go there again.
	Excluded
	// Unfit builders can never run the request.
	Unfit
)

// Terms are what a builder's rank is made of: when a build would be done there. They
// are estimates.
type Terms struct {
	// Wait is until there is a slot, and Wake until a builder that sleeps is up.
	Wait, Wake time.Duration
	// Transfer is for the inputs that it is not known to hold, after those that are
	// on their way already.
	Transfer time.Duration
	// Build is for the build itself, and Crowding what is added since others run
	// beside it.
	Build, Crowding time.Duration
	// Penalty is for what makes the builder a bad choice, and for what is uncertain.
	Penalty time.Duration
	// Finish is their sum, by which builders are ranked.
	Finish time.Duration
}

// Candidate is a builder of the request's domain in a ranking.
type Candidate struct {
	Name  string
	State State
	// Reason says for people what is in the way; empty where State is Free or Busy.
	Reason string
	// The rest is set where State is Free or Busy.
	// Busy of MaxJobs slots are taken. There may be more taken than there are,
	// after a reload that took slots away.
	Busy    int
	MaxJobs int
	// Speed is the speed factor times the speed of the system times what was learned
	// of the builder; more than 0.
	Speed float64
	// Missing is what the builder is not known to hold of the inputs, in bytes.
	Missing int64
	Terms   Terms
}

// reason says for people how the builder stands, without its name.
func (c *Candidate) reason() string {
	if c.Reason != "" {
		return c.Reason
	}
	return fmt.Sprintf("%d/%d busy", c.Busy, c.MaxJobs)
}

// Decision is a ranking with its reasons.
type Decision struct {
	// System and Features are what was required.
	System   string
	Features []string
	// Estimate is how long the build is thought to take at speed 1, and Builds from
	// how many builds of its name and system that is known; 0 for a guess.
	Estimate time.Duration
	Builds   int
	// Builder is where the request goes, empty if it cannot be placed now or had
	// better wait.
	Builder string
	// Limit says for people that the principal holds as many places as it may;
	// else empty.
	Limit string
	// Ahead is about how many requests are before it in the queue.
	Ahead int
	// Candidates are all builders of the domain: those that are up and match as
	// the rule ranked them, then those that are down, excluded and unfit, by name.
	Candidates []Candidate
}

// String says the decision for people, one line for each builder.
func (d Decision) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s: %s", requirement(d.System, d.Features), d.outcome())
	fmt.Fprintf(&s, "\n  estimate: %s at speed 1, %s", span(d.Estimate), d.source())
	for i := range d.Candidates {
		fmt.Fprintf(&s, "\n  %s: %s", d.Candidates[i].Name, d.Candidates[i].detail())
	}
	return s.String()
}

func (d *Decision) source() string {
	switch d.Builds {
	case 0:
		return "a guess"
	case 1:
		return "from 1 build"
	}
	return fmt.Sprintf("from %d builds", d.Builds)
}

func (d *Decision) outcome() string {
	switch {
	case d.Builder != "" && d.Ahead > 0:
		return fmt.Sprintf("goes to %s, after %d that wait already", d.Builder, d.Ahead)
	case d.Builder != "":
		return "goes to " + d.Builder
	case len(d.Candidates) == 0:
		return "there is no builder"
	case d.Candidates[0].State > Down:
		return "no builder can run it"
	case d.Candidates[0].State == Down:
		return "every builder that could run it is down"
	case d.Limit != "":
		return "waits, " + d.Limit
	}
	return "waits for " + d.Candidates[0].Name
}

// detail is the reason, with what the ranking is made of.
func (c *Candidate) detail() string {
	if c.State > Busy {
		return c.reason()
	}
	return fmt.Sprintf("%s, speed %s, %s missing; done in %s", c.reason(), number(c.Speed), size(c.Missing), c.Terms)
}

// String says the terms for people, the sum first: "1m12s (wait 10s, transfer 2s,
// build 60s)".
func (t Terms) String() string {
	parts := []string{}
	for _, term := range []struct {
		name string
		time time.Duration
	}{{"wait", t.Wait}, {"wake", t.Wake}, {"transfer", t.Transfer}, {"build", t.Build}, {"crowding", t.Crowding}, {"penalty", t.Penalty}} {
		if term.time >= 50*time.Millisecond || term.name == "build" {
			parts = append(parts, term.name+" "+span(term.time))
		}
	}
	return fmt.Sprintf("%s (%s)", span(t.Finish), strings.Join(parts, ", "))
}

// span writes a time for people: tenths of a second below ten, else whole ones.
func span(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// requirement names a kind of builder the way Nix does.
func requirement(system string, features []string) string {
	return fmt.Sprintf("a '%s' with features {%s}", system, strings.Join(features, ", "))
}

func number(f float64) string { return strconv.FormatFloat(f, 'g', 4, 64) }

// size writes a number of bytes as Nix does, in MiB.
func size(bytes int64) string {
	if bytes == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%.2f MiB", float64(bytes)/(1<<20))
}

// Explain ranks a request as Acquire would at this moment if nobody else waited, and
// takes nothing. What is on its way to builders counts as being there.
func (r *Router) Explain(req Request) Decision {
	w := r.prepare(req)
	r.mu.Lock()
	defer r.mu.Unlock()
	owner := principal{name: req.Principal, limit: req.PrincipalMaxJobs, class: req.Class, weight: orOne(req.Weight), served: r.served}
	if known := r.principals[req.Principal]; known != nil {
		owner.busy, owner.served = known.busy, known.served
	}
	l := &lane{shape: req.shape(), principal: &owner}
	r.examine(l)
	w.lane, w.seq = l, r.lastSeq+1
	r.renumber(w)
	d := Decision{System: l.system, Features: l.features, Limit: owner.atLimitReason(), Ahead: r.ahead(w)}
	d.Estimate = seconds(w.seconds)
	d.Builds = r.estimates.known(req.Job, req.System).builds
	d.Candidates = r.candidates(w)
	if d.Limit == "" && len(d.Candidates) > 0 && d.Candidates[0].State == Free {
		d.Builder = d.Candidates[0].Name
	}
	d.Candidates = append(d.Candidates, r.troubled(l)...)
	d.Candidates = append(d.Candidates, l.misfits...)
	return d
}

// candidates are the builders that match and are up, the best first.
func (r *Router) candidates(w *waiter) []Candidate {
	var view outlook
	view.reset(r)
	var candidates []Candidate
	for _, opt := range w.lane.options {
		p := r.places[opt.index]
		if !p.up() {
			continue
		}
		f := view.offerOf(r, w, opt)
		c := Candidate{
			Name: p.Name, State: Busy, Busy: p.busy, MaxJobs: p.MaxJobs, Missing: int64(w.lacks[opt.index]),
			Speed: p.speed(w.lane.system) * p.pace.factor(), Terms: view.termsOf(r, w, f),
		}
		if f.slotAt <= view.now {
			c.State = Free
		}
		candidates = append(candidates, c)
	}
	slices.SortStableFunc(candidates, func(a, b Candidate) int { return cmp.Compare(a.Terms.Finish, b.Terms.Finish) })
	return candidates
}

// termsOf takes an offer apart.
func (o *outlook) termsOf(r *Router, w *waiter, f offer) Terms {
	p := r.places[f.index]
	t := Terms{Wait: seconds(f.slotAt - o.now), Build: seconds(f.build), Crowding: seconds(f.build * o.crowd[f.index])}
	link := f.start - f.slotAt
	if p.asleep && link > 0 {
		t.Wake = min(seconds(link), p.wake)
	}
	t.Transfer = seconds(link+f.moves) - t.Wake
	t.Finish = seconds(f.finish - o.now)
	t.Penalty = t.Finish - t.Wait - t.Wake - t.Transfer - t.Build - t.Crowding
	return t
}

// seconds makes a duration of what may be without end.
func seconds(s float64) time.Duration {
	return time.Duration(min(max(s, 0), float64(math.MaxInt64/2)/1e9) * 1e9)
}

// troubled are the builders that match but are not up: first those that will be so
// by themselves.
func (r *Router) troubled(l *lane) []Candidate {
	var soon, down []Candidate
	for _, opt := range l.options {
		switch p := r.places[opt.index]; {
		case p.up():
		case p.hopeful():
			soon = append(soon, Candidate{Name: p.Name, State: Overloaded, Reason: p.trouble()})
		default:
			down = append(down, Candidate{Name: p.Name, State: Down, Reason: p.trouble()})
		}
	}
	return append(soon, down...)
}

// reasons says what is in the way at the builders of the lane's domain, of as many
// as limit.
func (r *Router) reasons(l *lane, limit int) []BuilderReason {
	var reasons []BuilderReason
	for _, opt := range l.options {
		if p := r.places[opt.index]; p.up() && len(reasons) < limit {
			reasons = append(reasons, BuilderReason{Name: p.Name, Reason: fmt.Sprintf("%d/%d busy", p.busy, p.MaxJobs)})
		}
	}
	for _, group := range [][]Candidate{r.troubled(l), l.misfits} {
		for i := range group {
			if len(reasons) < limit {
				reasons = append(reasons, BuilderReason{Name: group[i].Name, Reason: group[i].reason()})
			}
		}
	}
	return reasons
}
