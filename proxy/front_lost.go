package proxy

import (
	"errors"
	"slices"
	"syscall"
	"time"
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

// resetQuiet is for how long nothing of ours was acknowledged when a connection is
// reset whose peer had been lost before.
const resetQuiet = time.Second

// killed tells a reset by the kernel of a client that was killed while it had
// something to read, which it has acknowledged just before, from one by somebody on
// the way, or by a machine that was started anew, who know nothing of the
// connection.
func (c *frontConn) killed(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) && c.raw != nil && sinceAcknowledged(c.raw) < resetQuiet
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
