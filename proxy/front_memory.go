package proxy

import (
	"fmt"
	"io"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// Memory of sessions. x/crypto/ssh lets a client send 2 MiB into a channel that nobody
// reads, and keeps each packet as it came, so that a byte can take sixty. The window
// cannot be set. So what is received on a connection is set off against what its
// sessions read, and the difference is paid for out of a budget that all share: a
// connection for which it has nothing left is not read until its sessions have read.

const (
	// sessionCost is what a session takes that has nothing unread, in bytes:
	// goroutines, and buffers of protocols.
	sessionCost = 96 << 10
	// creditStep is in what steps more is taken from the budget and given back.
	creditStep = 64 << 10
	// defaultSessionMemory bounds the default of Limits.SessionMemory.
	defaultSessionMemory = 256 << 20
	// holdPoll is how often a connection that is held looks for what nobody tells it:
	// that others gave memory back, or that it is closed.
	holdPoll = 100 * time.Millisecond
	// framing is the part of what is read that may have been frames around it, and
	// adjusting is the part of what is sent for which windows are adjusted: one in so
	// many bytes of either was received and is no input. That is believed up to
	// maxOverhead, or a peer that moves enough could hide as much as it likes; more is
	// only ever owed by a connection on which one session moves many GiB while another
	// never reads.
	framing, adjusting = 16, 256
	maxOverhead        = 32 << 20
)

// memoryLimit is a quarter of GOMEMLIMIT, by the environment or by who has set it for
// us, and bounded: unread input is no use that memory should be kept for.
func memoryLimit() int64 {
	limit := debug.SetMemoryLimit(-1) // a negative input only reads it
	if limit == math.MaxInt64 {
		return defaultSessionMemory
	}
	return max(min(limit/4, defaultSessionMemory), 4*sessionCost)
}

// budget is an amount of bytes that all principals share. None of them gets more than
// it leaves free: so one gets half of it, and there is something left for each that
// comes later.
type budget struct {
	limit int64

	mu   sync.Mutex // guards what follows
	used int64
	by   map[string]int64
}

func newBudget(limit int64) *budget { return &budget{limit: limit, by: map[string]int64{}} }

func (b *budget) take(principal string, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.by[principal]+n > b.limit-b.used-n {
		return false
	}
	b.used += n
	b.by[principal] += n
	return true
}

func (b *budget) release(principal string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	if b.by[principal] -= n; b.by[principal] == 0 {
		delete(b.by, principal)
	}
}

// intake is what a connection has received and its sessions have not read.
type intake struct {
	held  atomic.Bool   // nothing is received now
	moved chan struct{} // has one token when something was read
	sent  *atomic.Int64 // by the connection

	mu       sync.Mutex // guards what follows
	received int64      // on the wire, since all was read for the last time
	consumed int64      // by sessions, since then
	sentThen int64      // what was sent before
	open     int        // sessions and jumps
	waiting  int        // those of them that wait for input
	credit   int64      // taken from the budget beside sessionCost for each of them
}

// unread is an estimate of what is kept for sessions, in bytes, too low by maxOverhead
// and what is on its way to them at most. The caller holds mu.
func (i *intake) unread() int64 {
	n := i.received - i.consumed - min(i.consumed/framing+(i.sent.Load()-i.sentThen)/adjusting, maxOverhead)
	if n <= 0 || i.open == 0 {
		i.forget()
		return 0
	}
	return n
}

// forget begins anew: all was read.
func (i *intake) forget() { i.received, i.consumed, i.sentThen = 0, 0, i.sent.Load() }

// admit notes what was received and reports whether it is paid for.
func (c *frontConn) admit(n int) bool {
	i := &c.intake
	i.mu.Lock()
	defer i.mu.Unlock()
	i.received += int64(n)
	missing := i.unread() - int64(i.open)*sessionCost - i.credit
	if missing <= 0 {
		return true
	}
	missing = (missing + creditStep - 1) / creditStep * creditStep
	if !c.front.memory.take(c.granted, missing) {
		return false
	}
	i.credit += missing
	return true
}

// settle gives back what is not needed any more. The caller holds mu.
func (c *frontConn) settle() {
	i := &c.intake
	needed := max(0, i.unread()-int64(i.open)*sessionCost)
	needed = (needed + creditStep - 1) / creditStep * creditStep
	if surplus := i.credit - needed; surplus > creditStep || surplus > 0 && needed == 0 {
		i.credit -= surplus
		c.front.memory.release(c.granted, surplus)
	}
}

// awaitMemory holds the connection as long as what it has received is not paid for.
// One whose sessions read nothing meanwhile is ended: it cannot go on.
func (c *frontConn) awaitMemory() {
	if c.paid || c.admit(0) {
		return
	}
	c.intake.held.Store(true)
	defer c.intake.held.Store(false)
	limit := c.front.limits.WriteStall
	poll := time.NewTicker(holdPoll)
	defer poll.Stop()
	for last, dry := time.Now(), 0; !c.admit(0) && c.reason() == ""; {
		select {
		case <-c.intake.moved:
			last, dry = time.Now(), 0
			continue
		case <-poll.C:
		}
		if c.allWait() {
			if dry++; dry > 1 { // what is there is read at once
				c.intake.mu.Lock()
				c.intake.forget()
				c.intake.mu.Unlock()
			}
		}
		if time.Since(last) >= limit {
			c.abort(fmt.Sprintf("more sent than its sessions read in %s, and memory is short", limit))
		}
	}
}

// allWait says that each session waits for input.
func (c *frontConn) allWait() bool {
	c.intake.mu.Lock()
	defer c.intake.mu.Unlock()
	return c.intake.waiting == c.intake.open
}

// openIntake pays for a session; closeIntake gives it back.
func (c *frontConn) openIntake() bool {
	if !c.front.memory.take(c.granted, sessionCost) {
		return false
	}
	c.intake.mu.Lock()
	defer c.intake.mu.Unlock()
	c.intake.open++
	return true
}

func (c *frontConn) closeIntake() {
	c.front.memory.release(c.granted, sessionCost)
	c.intake.mu.Lock()
	defer c.intake.mu.Unlock()
	c.intake.open--
	c.settle()
}

// input is what a client sends into a channel.
type input struct {
	conn *frontConn
	from io.Reader
}

// Read sets off what it returns. One that returns less than there is room for has
// emptied the channel.
func (in *input) Read(p []byte) (int, error) {
	i := &in.conn.intake
	i.mu.Lock()
	i.waiting++
	i.mu.Unlock()
	n, err := in.from.Read(p)
	i.mu.Lock()
	i.waiting--
	i.consumed += int64(n)
	if n < len(p) && i.open == 1 {
		i.forget()
	}
	in.conn.settle()
	i.mu.Unlock()
	if n > 0 && i.held.Load() {
		select {
		case i.moved <- struct{}{}:
		default:
		}
	}
	return n, err
}

// refuseStderr ends a connection whose client sends into the standard error of a
// channel: that is for the other way, and what comes there would stay for ever.
func (c *frontConn) refuseStderr(ch ssh.Channel) {
	c.sessions.Go(func() {
		defer c.front.recovered("standard error of a client")
		if n, _ := ch.Stderr().Read(make([]byte, 1)); n > 0 {
			c.abort("input on standard error")
		}
	})
}
