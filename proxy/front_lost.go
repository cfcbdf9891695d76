package proxy

import (
	"errors"
	"slices"
	"syscall"
)

// A client that leaves, killed or not, is gone by its own will: its kernel says so
// (FIN), if it does not itself. One that is lost never meant to go: it fell silent,
// or the network says that there is no way to it any more.

// lossErrors are what sockets say of a peer that is lost, see also killed.
var lossErrors = []error{
	syscall.ECONNRESET, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN,
}

// noteLoss remembers an error of the socket that says that the peer is lost. Both
// directions may see it, each error once, so both tell.
func (c *frontConn) noteLoss(err error) {
	if err == nil {
		return
	}
	i := slices.IndexFunc(lossErrors, func(loss error) bool { return errors.Is(err, loss) })
	if i >= 0 && !c.killed(err) {
		c.markLost(lossErrors[i].Error())
	}
}

// killed tells a reset by the kernel of a client from one by somebody on the way, or by
// a machine that was started anew, who know nothing of the connection. Nix that is
// interrupted kills its ssh, often with something unread, and the kernel then resets
// the connection; it has acknowledged something, or that there is no room, just before.
func (c *frontConn) killed(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) && c.raw != nil && sinceAcknowledged(c.raw) < c.front.limits.ResetQuiet
}

// lose closes a connection whose peer shows no life.
func (c *frontConn) lose(reason string) {
	c.markLost(reason)
	c.Conn.Close()
}

// markLost says why the connection ended, unless it has ended already.
func (c *frontConn) markLost(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == "" {
		c.why = reason
		c.vanished = true
	}
}

// lost reports whether the connection ended without the will of the client or of
// the front. It is known before the end of input is.
func (c *frontConn) lost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.vanished
}
