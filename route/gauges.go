package route

import "time"

// Gauges are what the router knows at one moment, in numbers. They cost less than a
// [Status], which has sentences for people.
type Gauges struct {
	Builders []BuilderGauges // those that are configured, by name
	// Waiting is how many requests wait, by system. Systems are as requests named them.
	Waiting map[string]int
	// Oldest is for how long the first of them has waited; 0 if none does.
	Oldest time.Duration
}

// BuilderGauges is a builder at one moment.
type BuilderGauges struct {
	Name          string
	Busy, MaxJobs int
	// Up says that builds may be placed there. All others are causes that they are not,
	// but for Asleep and Trial.
	Up bool
	// Down says that it cannot be reached, Suspended that it is left alone after faults.
	Down, Suspended, Drained, Overloaded bool
	// Asleep says that it has to be woken first, and Trial that builds go there one at a
	// time until one went well.
	Asleep, Trial bool
}

// Gauges returns a snapshot of builders and queue.
func (r *Router) Gauges() Gauges {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := Gauges{Builders: make([]BuilderGauges, len(r.places)), Waiting: map[string]int{}}
	for i, p := range r.places {
		g.Builders[i] = BuilderGauges{
			Name: p.Name, Busy: p.busy, MaxJobs: p.MaxJobs, Up: p.up(), Down: p.down, Suspended: !p.until.IsZero(),
			Drained: p.drained != "", Overloaded: p.overloaded != "", Asleep: p.asleep, Trial: p.trial,
		}
	}
	for w := r.oldest; w != nil; w = w.younger {
		g.Waiting[w.lane.system]++
	}
	if r.oldest != nil {
		g.Oldest = max(0, r.now().Sub(r.oldest.since))
	}
	return g
}
