package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/metrics"
)

// serveConn is a connection from accept to close. It owns a slot, and is arriving.
func (f *Front) serveConn(ctx context.Context, conn net.Conn) {
	defer func() { <-f.slots }()
	arrived := sync.OnceFunc(func() { f.arriving.Add(-1) })
	defer arrived()
	defer conn.Close()
	c := newFrontConn(ctx, f, conn)
	defer c.crashed()
	if !f.track(c) {
		return
	}
	defer c.end()
	if err := c.learnSource(); err != nil {
		c.headerRefused(err)
		return
	}
	if !c.enter() {
		return
	}
	arrived()
	if err := c.exchangeIdents(); err != nil {
		c.loginFailed(err)
		return
	}
	c.runShell()
}

// recovered keeps a panic from taking the process, and with it everybody else's
// builds. It is deferred in each goroutine that works for a client.
func (f *Front) recovered(where string) {
	if p := recover(); p != nil {
		f.log.Error("panic", "where", where, "panic", quotePeer(fmt.Sprint(p)), "stack", string(debug.Stack()))
	}
}

// crashed is recovered for the goroutine of a connection: who brings our code down
// before it logs in is kept out.
func (c *frontConn) crashed() {
	if p := recover(); p != nil {
		c.front.log.Error("panic", "where", "connection", "panic", quotePeer(fmt.Sprint(p)), "stack", string(debug.Stack()))
		if !c.loggedIn.Load() {
			c.penalise(offenceCrash)
		}
	}
}

// enter takes a place among those who log in, and starts the clock.
func (c *frontConn) enter() bool {
	if left := c.front.penalties.left(c.remote.Addr()); left > 0 && !c.balancer {
		left = left.Round(time.Second) + time.Second
		c.front.refusals.note(RefusedPenalty, slog.LevelInfo, "ssh connection refused: its source failed to log in", append(c.where(), "for", left.String())...)
		c.sayRefused(fmt.Sprintf("not allowed at this time, after failed logins from this address; try again in %s", left))
		return false
	}
	if !c.takePlace() {
		return false
	}
	c.front.metrics.Connection(metrics.ConnectionAdmitted)
	grace := c.front.limits.LoginGrace
	c.grace = time.AfterFunc(grace, func() { c.fail(offenceGraceExceeded, fmt.Sprintf("no login within %s", grace)) })
	return true
}

// takePlace waits among those who have not logged in, or reports false.
func (c *frontConn) takePlace() bool {
	c.waiter = &waiter{source: source(c.remote.Addr()), since: time.Now(), evict: func(reason string) { c.fail(offenceNone, reason) }}
	if c.front.room.enter(c.waiter) {
		return true
	}
	c.front.refusals.note(RefusedStartups, slog.LevelInfo, "ssh connection refused: too many logins at once", c.where()...)
	c.sayRefused("too many logins at once, try again")
	return false
}

// sayRefused turns a connection away. The line fits any socket buffer.
func (c *frontConn) sayRefused(sentence string) {
	c.front.metrics.Connection(metrics.ConnectionRefused)
	fmt.Fprintf(c.Conn, "nixbastion: %s\r\n", sentence)
}

// fail ends a login for a reason of ours.
func (c *frontConn) fail(what offence, reason string) {
	c.mu.Lock()
	if c.why == "" {
		c.fault = what
	}
	c.mu.Unlock()
	c.abort(reason)
}

var errNoPlace = errors.New("too many logins at once")

// headerRefused ends a connection that does not say whose it is.
func (c *frontConn) headerRefused(err error) {
	if !errors.Is(err, errNoPlace) { // that is told already
		reason := cmp.Or(c.reason(), err.Error())
		c.front.refusals.note(RefusedHeader, slog.LevelWarn, "ssh connection refused: no PROXY header", append(c.where(), "reason", quotePeer(reason))...)
	}
}

// exchangeIdents says who we are and learns who the client says it is, so that the
// ciphers can be chosen before the key exchange.
func (c *frontConn) exchangeIdents() error {
	if _, err := c.send([]byte(serverIdent + "\r\n")); err != nil {
		return fmt.Errorf("send identification line: %w", err)
	}
	ident, raw, err := readIdent(c)
	if err != nil && isHeader(raw) {
		c.front.refusals.count(RefusedHeader)
		return errUnlistedHeader
	}
	if err != nil {
		return err
	}
	c.ident, c.replay = ident, append(raw, c.replay...) // behind a PROXY header more is there than raw has room for
	return nil
}

// end waits for everything that belongs to the connection.
func (c *frontConn) end() {
	c.Conn.Close()
	c.out.Stop()
	c.cancel(nil)
	c.stopTimers()
	c.mu.Lock()
	c.ended = true
	if c.goodbye != nil {
		c.goodbye.Stop()
	}
	c.mu.Unlock()
	c.sessions.Wait()
	c.front.room.leave(c.waiter)
	c.front.untrack(c)
	if !c.loggedIn.Load() {
		return
	}
	c.front.principals.release(c.granted)
	c.front.penalties.leave(c.remote.Addr())
	c.front.log.Info("ssh connection ended", append(c.where(), "principal", c.granted, "reason", c.reason())...)
}

func (c *frontConn) stopTimers() {
	for _, timer := range []*time.Timer{c.grace, c.unused} {
		if timer != nil {
			timer.Stop()
		}
	}
	if c.alive != nil {
		c.alive.stop()
	}
}

// maxChannelPayload bounds what comes with a channel, in bytes: two addresses with a
// jump, nothing with a session. The library keeps it as long as the channel.
const maxChannelPayload = 1 << 10

// refuseChannel answers every channel that is neither a session nor a jump.
func (c *frontConn) refuseChannel(_ *ssh.ServerConn, channel ssh.NewChannel) {
	defer c.front.recovered("channel")
	if _, ok := c.countOpen(); !ok {
		return
	}
	c.refuse(channel, ssh.UnknownChannelType, "nixbastion: only sessions and jumps are served")
}

// refuse says no to a channel. A peer that does not read the refusals piles them
// up, each with a goroutine and up to 256 KiB that came with the channel: it
// loses the connection.
func (c *frontConn) refuse(channel ssh.NewChannel, reason ssh.RejectionReason, text string) {
	c.mu.Lock()
	c.refusing++
	tooMany := c.refusing > c.front.limits.OpensPer10s
	c.mu.Unlock()
	if tooMany {
		c.abort("refusals of channels are not read")
	}
	channel.Reject(reason, text)
	c.mu.Lock()
	c.refusing--
	c.mu.Unlock()
}

// countOpen counts a channel that is being opened and returns how many there were
// lately. It reports false, and ends the connection, when there are so many that
// even refusing them is too much.
func (c *frontConn) countOpen() (n int, ok bool) {
	c.mu.Lock()
	n = c.opens.hit(time.Now())
	c.mu.Unlock()
	if n <= floodFactor*c.front.limits.OpensPer10s {
		return n, true
	}
	c.abort("flood of channels")
	return n, false
}

// globalRequest answers what is asked about the connection as a whole. Clients
// that send keep-alives take any answer for a sign of life.
func (c *frontConn) globalRequest(req *ssh.Request) bool {
	defer c.front.recovered("global request")
	if c.globals.hit(time.Now()) > floodFactor*c.front.limits.OpensPer10s {
		c.abort("flood of requests")
	}
	return req.Type == keepAliveRequest
}
