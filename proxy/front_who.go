package proxy

import (
	"sync"
	"time"
)

// connSight is what there is to be seen of a connection from outside.
type connSight struct {
	who      *Identity
	since    time.Time
	received int64 // bytes, those of SSH itself among them
	sent     int64
	jumps    int
	sessions []sessionSight
}

// sessionSight is a session, and what it does.
type sessionSight struct {
	command, operation string
	since              time.Time
}

// occupation is what a session does now. Its zero value does nothing.
type occupation struct {
	mu        sync.Mutex // guards what follows
	command   string
	operation string
	since     time.Time
}

// begin notes a command, and operate what of it runs now; "" between two.
func (d *occupation) begin(command string) { d.note(&d.command, command) }

func (d *occupation) operate(operation string) { d.note(&d.operation, operation) }

func (d *occupation) note(what *string, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*what, d.since = text, time.Now()
}

func (d *occupation) sight() sessionSight {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sessionSight{d.command, d.operation, d.since}
}

// connections are those of clients that have logged in.
func (f *Front) connections() []connSight {
	var all []*frontConn
	f.each(func(c *frontConn) { all = append(all, c) })
	var seen []connSight
	for _, c := range all {
		if s, ok := c.sight(); ok {
			seen = append(seen, s)
		}
	}
	return seen
}

// sight reports false before the login.
func (c *frontConn) sight() (s connSight, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login == nil || c.ended {
		return connSight{}, false
	}
	s = connSight{who: c.login.Identity, since: c.login.Since, received: c.received.Load(), sent: c.sent.Load(), jumps: c.jumping}
	for _, session := range c.serving {
		if does := session.does.sight(); does.command != "" {
			s.sessions = append(s.sessions, does)
		}
	}
	return s, true
}
