package route

import (
	"cmp"
	"fmt"
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
	Waiting   Waiting
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
		if !p.serves(domain) {
			continue
		}
		if p.up() {
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
		b := BuilderStatus{Name: p.Name, Domains: p.Domains, Busy: p.busy, MaxJobs: p.MaxJobs, Removed: p.removed()}
		if !p.up() {
			b.Trouble = p.trouble()
		}
		status = append(status, b)
	}
	slices.SortFunc(status, func(a, b BuilderStatus) int { return cmp.Compare(a.Name, b.Name) })
	return status
}

func (r *Router) queueStatus() []Queued {
	var waiters []*waiter
	reasons := map[*lane][]BuilderReason{} // one for all that wait in a lane
	for _, l := range r.lanes {
		waiters = append(waiters, l.waiters...)
		reasons[l] = r.reasons(l)
	}
	slices.SortFunc(waiters, func(a, b *waiter) int { return cmp.Compare(a.seq, b.seq) })
	queue := make([]Queued, 0, len(waiters))
	for _, w := range waiters {
		l := w.lane
		queue = append(queue, Queued{
			Principal: l.principal.name, Domain: l.domain, Name: w.req.Name, System: l.system, Features: l.features,
			Since:   w.since,
			Waiting: Waiting{Ahead: w.ahead, Limit: l.principal.atLimitReason(), Builders: reasons[l]},
		})
	}
	return queue
}
