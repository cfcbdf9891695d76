package proxy

import (
	"slices"
	"sync"
	"time"

	"nixbastion/policy"
)

// grace lets builds wait for builders that were not up yet since the proxy started, or
// since a reload brought them: for that long nobody can say that they are down. The
// zero value is ready.
type grace struct {
	mu sync.Mutex // guards what follows
	// since is when each builder of the policy was first in it.
	since map[string]time.Time
}

// update takes over the builders of a policy.
func (g *grace) update(builders []policy.Builder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.since
	g.since = make(map[string]time.Time, len(builders))
	for _, b := range builders {
		since, known := before[b.Name]
		if !known {
			since = time.Now()
		}
		g.since[b.Name] = since
	}
}

// left is what is left of the grace of a builder, 0 or more.
func (g *grace) left(builder string, length time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(0, length-time.Since(g.since[builder]))
}

// patience is how long an order may wait while all builders that match are down: for
// as long as the grace of one of them lasts that is not drained.
func (b *builds) patience(o *order) time.Duration {
	pol := b.policy.Current()
	var longest time.Duration
	for i := range pol.Builders {
		c := &pol.Builders[i]
		_, runs := c.Systems[o.system]
		if (runs || o.system == "builtin") && slices.Contains(c.Domains, o.principal.Domain) && !b.drained(c.Name) {
			longest = max(longest, b.grace.left(c.Name, pol.Scheduling.StartupGrace))
		}
	}
	return longest
}
