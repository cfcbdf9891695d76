package proxy

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/metrics"
)

// serveConn is a connection from accept to close. It owns a slot.
func (f *Front) serveConn(ctx context.Context, conn net.Conn) {
	defer func() { <-f.slots }()
	defer conn.Close()
	defer f.recovered("connection")
	c := newFrontConn(ctx, f, conn)
	if !f.track(c) {
		return
	}
	defer c.end()
	if !c.enter() {
		return
	}
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

// enter takes a place among those who log in, and starts the clock.
func (c *frontConn) enter() bool {
	c.waiter = &waiter{source: source(c.remote.Addr()), since: time.Now(), evict: c.abort}
	if !c.front.room.enter(c.waiter) {
		c.front.log.Info("ssh connection refused: too many logins at once", c.where()...)
		c.front.metrics.Connection(metrics.ConnectionRefused)
		fmt.Fprintf(c.Conn, "nixbastion: too many logins at once, try again\r\n") // fits any socket buffer
		return false
	}
	c.front.metrics.Connection(metrics.ConnectionAdmitted)
	grace := c.front.limits.LoginGrace
	c.grace = time.AfterFunc(grace, func() { c.abort(fmt.Sprintf("no login within %s", grace)) })
	return true
}

// exchangeIdents says who we are and learns who the client says it is, so that the
// ciphers can be chosen before the key exchange.
func (c *frontConn) exchangeIdents() error {
	if _, err := c.send([]byte(serverIdent + "\r\n")); err != nil {
		return fmt.Errorf("send identification line: %w", err)
	}
	ident, raw, err := readIdent(c)
	if err != nil {
		return err
	}
	c.ident, c.replay = ident, raw
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
