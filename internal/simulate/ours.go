package simulate

import (
	"fmt"
	"time"

	"nixbastion/route"
)

// epoch is what the router's clock shows at the start. Any time but zero will do.
var epoch = time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC)

// ours drives the router itself, as the proxy does.
type ours struct {
	run    *run
	router *route.Router
	byName map[string]*machine
	paths  map[pathID]route.PathID

	tickets map[int]*route.Ticket // of builds that wait
	leased  []bool                // by build: it waits no more
}

func newOurs(r *run) policy {
	o := &ours{run: r, byName: map[string]*machine{}, paths: map[pathID]route.PathID{}, tickets: map[int]*route.Ticket{}, leased: make([]bool, len(r.trace.Builds))}
	o.router = route.New(route.Options{
		Now:        func() time.Time { return epoch.Add(r.now) },
		QueueLimit: len(r.trace.Builds) + 1,
		PathLimit:  r.paths,
		History:    r.trace.history(),
	})
	var builders []route.Builder
	for _, m := range r.machines {
		o.byName[m.Name] = m
		builders = append(builders, route.Builder{
			Name: m.Name, Systems: m.Systems, Features: m.Features, MandatoryFeatures: m.Mandatory,
			MaxJobs: m.Slots, SpeedFactor: m.Speed, Domains: r.trace.domains(m.Machine),
		})
	}
	o.router.SetBuilders(builders)
	return newMiddle(r, o)
}

// history is what a proxy has learned that built all this before: how long the
// builds took that have an estimate, what they need, and how fast links are.
func (t *Trace) history() route.History {
	var h route.History
	for i := range t.Builds {
		b := &t.Builds[i]
		if b.Estimate == 0 {
			continue
		}
		h.Jobs = append(h.Jobs, route.JobHistory{
			Job:     route.JobName(b.Name),
			Systems: []route.DurationHistory{{System: b.System, Seconds: b.Estimate.Seconds(), Builds: 1}},
			Inputs:  t.jobs(b.Deps),
		})
	}
	if h.Jobs != nil {
		for i := range t.Machines {
			m := &t.Machines[i]
			h.Builders = append(h.Builders, route.BuilderHistory{Builder: m.Name, Bandwidth: m.Link})
		}
	}
	return h
}

func (t *Trace) jobs(builds []int) []string {
	var jobs []string
	for _, b := range builds {
		jobs = append(jobs, route.JobName(t.Builds[b].Name))
	}
	return jobs
}

// domains are those that may use a machine, all of the trace's if it says nothing.
func (t *Trace) domains(m *Machine) []string {
	if len(m.Domains) > 0 {
		return m.Domains
	}
	seen := map[string]bool{}
	var domains []string
	for i := range t.Builds {
		if d := t.Builds[i].Domain; !seen[d] {
			seen[d] = true
			domains = append(domains, d)
		}
	}
	return domains
}

func (o *ours) submit(c *client, build int, granted func(place)) {
	ticket, err := o.router.Submit(o.request(c, build), func(l *route.Lease, err error) {
		o.leased[build] = true
		delete(o.tickets, build)
		if err != nil {
			o.fail(build, err)
			return
		}
		granted(&lease{l, o, build})
	})
	switch {
	case err != nil:
		o.fail(build, err)
	case !o.leased[build]:
		o.tickets[build] = ticket
	}
}

func (o *ours) join(c *client, build int) {
	if ticket := o.tickets[build]; ticket != nil {
		ticket.Join(route.Asker{Principal: c.Name})
	}
}

func (o *ours) request(c *client, build int) route.Request {
	b := &o.run.trace.Builds[build]
	return route.Request{
		Asker: route.Asker{Principal: c.Name}, Domain: b.Domain, Name: b.Name, System: b.System, Features: b.Features,
		Job: route.JobName(b.Name), InputJobs: o.run.trace.jobs(b.Deps), Inputs: o.inputs(build),
	}
}

// fail keeps the first error; its build never ends, which the run reports with it.
func (o *ours) fail(build int, err error) {
	if o.run.failed == nil {
		o.run.failed = fmt.Errorf("place %s: %w", o.run.trace.Builds[build].Name, err)
	}
}

func (o *ours) inputs(build int) []route.Input {
	var inputs []route.Input
	for _, in := range o.run.inputs[build] {
		inputs = append(inputs, route.Input{ID: o.path(in.id), Size: in.size})
	}
	return inputs
}

func (o *ours) path(id pathID) route.PathID {
	known, ok := o.paths[id]
	if !ok {
		known = o.router.Intern(fmt.Sprint(id))
		o.paths[id] = known
	}
	return known
}

func (o *ours) due() (time.Duration, bool) {
	due := o.router.NextDue()
	return due.Sub(epoch), !due.IsZero()
}

func (o *ours) recheck() { o.router.Recheck() }

// lease is a lease of the router's with what the simulation knows of it.
type lease struct {
	*route.Lease
	ours  *ours
	build int
}

func (l *lease) machine() *machine { return l.ours.byName[l.Builder()] }

func (l *lease) transferred(bytes int64, took time.Duration) { l.Transferred(bytes, took) }

func (l *lease) began() { l.Began() }

// built is in the order of the proxy: who waits is placed when the slot is free,
// and the builder is known to have the output by then.
func (l *lease) built() {
	l.ours.router.NoteHeld(l.Builder(), l.ours.path(pathID(l.build)))
	l.Built()
}
