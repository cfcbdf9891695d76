package route

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Status is what the router knows at one moment.
type Status struct {
	Builders []BuilderStatus // by name
	Queue    []Queued        // by arrival
}

// BuilderStatus is a builder at one moment.
type BuilderStatus struct {
	Name    string
	Domains []string // shared: do not change
	Busy    int
	MaxJobs int
	// Trouble says for people why it gets no builds; empty if it is up.
	Trouble string
	// Draining says that it gets none because the admin wants so, and Asleep that it
	// has to be woken first.
	Draining, Asleep bool
	// Resources are those of Builder, and Taken what of them its builds hold.
	Resources, Taken map[string]int64
	// Speed is its real speed by the configured one, as learned from Builds builds,
	// and Bandwidth what is learned of the way to it, in bytes a second; 0 if nothing.
	Speed     float64
	Builds    int
	Bandwidth float64
	// Removed says that it is not configured any more and only its leases are left.
	Removed bool
}

// Queued is a request that waits.
type Queued struct {
	Principal string
	Domain    string
	Name      string
	System    string
	Features  []string // shared: do not change
	Since     time.Time
	// Estimate is how long it will take at speed 1.
	Estimate time.Duration
	Waiting  Waiting
}

// Status returns a snapshot of builders and queue.
func (r *Router) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Status{Builders: r.builderStatus(), Queue: r.queueStatus()}
}

// Down says for people, builder by builder, why none of a domain is up; empty if
// one is. A domain without builders has none up.
func (r *Router) Down(domain string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var troubles []string
	for _, p := range r.places {
		if !slices.Contains(p.Domains, domain) {
			continue
		}
		if p.hopeful() {
			return ""
		}
		troubles = append(troubles, p.Name+" is "+p.trouble())
	}
	if troubles == nil {
		return fmt.Sprintf("domain '%s' has no builder", domain)
	}
	return strings.Join(troubles, ", ")
}

func (r *Router) builderStatus() []BuilderStatus {
	status := make([]BuilderStatus, 0, len(r.byName))
	for _, p := range r.byName {
		b := BuilderStatus{
			Name: p.Name, Domains: p.Domains, Busy: p.busy, MaxJobs: p.MaxJobs, Removed: p.removed(),
			Draining: p.drained != "", Asleep: p.asleep, Resources: p.Resources, Taken: maps.Clone(p.taken),
			Speed: p.pace.factor(), Builds: p.pace.builds, Bandwidth: p.pace.bandwidth,
		}
		if !p.up() {
			b.Trouble = p.trouble()
		}
		status = append(status, b)
	}
	slices.SortFunc(status, func(a, b BuilderStatus) int { return cmp.Compare(a.Name, b.Name) })
	return status
}

func (r *Router) queueStatus() []Queued {
	queue := make([]Queued, 0, r.waiting)
	said := map[*lane]Waiting{} // what is the same for all that wait in a lane
	for w := r.oldest; w != nil; w = w.younger {
		l := w.lane
		state, known := said[l]
		if !known {
			state = r.laneState(l)
			said[l] = state
		}
		queue = append(queue, Queued{
			Principal: l.principal.name, Domain: l.domain, Name: w.req.Name, System: l.system, Features: l.features,
			Since: w.since, Estimate: seconds(w.seconds), Waiting: r.stateIn(state, w),
		})
	}
	return queue
}
