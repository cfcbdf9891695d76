package proxy

import (
	"context"
	"time"
)

const (
	// drainPoll is how often a draining front looks who is done.
	drainPoll = 50 * time.Millisecond
	// drainLinger is how long a connection without a session may stay while the front
	// drains: between its login and its session, or between two of them.
	drainLinger = 2 * time.Second
)

// Draining says for whom a draining front waits.
type Draining struct {
	// Idle is how long a session may ask for nothing before it is ended.
	Idle time.Duration
	// Jumps says that jumps are waited for, too.
	Jumps bool
}

// Drain waits until clients have come to the end of what they do. It is called
// once, when no Serve accepts any more: connections that are there are served as
// before, in their login, too. What asks for nothing is closed. It returns when no
// connection is left that is waited for, or when ctx ends. Shutdown is still called.
func (f *Front) Drain(ctx context.Context, d Draining) {
	f.drainIdle.Store(int64(d.Idle))
	close(f.draining)
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for f.drainOnce(time.Now(), d.Jumps) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (f *Front) isDraining() bool { return isClosed(f.draining) }

// drainOnce closes what is done and reports whether anything else is left.
func (f *Front) drainOnce(now time.Time, jumps bool) (left bool) {
	f.each(func(c *frontConn) {
		if c.drained(now, jumps) {
			left = true
		}
	})
	return left
}

// idleInDrain is how long a session may ask for nothing, once the front drains.
func (f *Front) idleInDrain() time.Duration { return time.Duration(f.drainIdle.Load()) }

// drained closes the connection if nothing was done on it for a while, and reports
// whether it is waited for.
func (c *frontConn) drained(now time.Time, jumps bool) bool {
	if !c.loggedIn.Load() {
		return true // until it is, or gone: logins have a limit of their own
	}
	c.mu.Lock()
	busy := c.running > 0 || c.jumping > 0
	waited := c.running > 0 || c.jumping > 0 && jumps
	if c.quietSince.IsZero() {
		c.quietSince = now
	}
	quiet := now.Sub(c.quietSince)
	c.mu.Unlock()
	if busy {
		return waited
	}
	if quiet >= drainLinger {
		c.abort("drained")
	}
	return true // until it is gone
}
