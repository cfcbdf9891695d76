package proxy

import (
	"sync"
	"time"

	"nixbastion/route"
)

// glanceAge is how old an answer about builders and queue may be.
const glanceAge = 250 * time.Millisecond

// glances keeps the router's state for a moment: to take it stops the router for
// as long as the queue is long, and clients may ask all the time.
type glances struct {
	age time.Duration // 0 means glanceAge

	mu    sync.Mutex // guards what follows; held while the state is taken
	taken time.Time
	state route.Status
}

// take returns the state of a router. It is shared: do not change it.
func (g *glances) take(r *route.Router) *route.Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	age := g.age
	orDefault(&age, glanceAge)
	if g.taken.IsZero() || time.Since(g.taken) > age {
		g.state, g.taken = r.Status(), time.Now()
	}
	state := g.state
	return &state
}

// forget makes the next answer a new one: the asker has just changed something.
func (g *glances) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.taken = time.Time{}
}
