package proxy

import (
	"sync"
	"time"
)

// readGate holds back what was received while something is being sent that has to
// come out in one piece. The zero value is open.
type readGate struct {
	mu      sync.Mutex // guards what follows
	holders int
	opened  chan struct{} // closed when the last holder lets go; nil while there is none
}

// gateLimit is how long received bytes wait at most: a sender may itself be
// waiting for what would be received, as during a key exchange.
const gateLimit = time.Second

func (g *readGate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holders++; g.opened == nil {
		g.opened = make(chan struct{})
	}
}

func (g *readGate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holders--; g.holders == 0 {
		close(g.opened)
		g.opened = nil
	}
}

// pass waits until nobody holds the gate.
func (g *readGate) pass() {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	if opened == nil {
		return
	}
	select {
	case <-opened:
	case <-time.After(gateLimit):
	}
}
