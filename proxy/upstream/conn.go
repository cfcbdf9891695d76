package upstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// conn is an ssh connection to a builder.
type conn struct {
	builder *builder
	link    *link

	// Guarded by builder.mu:
	channels int         // processes on it, and those that are being started
	limit    int         // of channels; falls when the builder refuses one
	retired  bool        // takes no more channels and is closed after the last
	unused   *time.Timer // closes it; nil while channels > 0

	// mute is how much had been received when an answer was last waited for in
	// vain, -1 before that.
	mute atomic.Int64

	// asked is when the question for a sign of life was put that stands, in ns after
	// the link was opened; 0 if none does.
	asked atomic.Int64

	causeOnce sync.Once
	cause     atomic.Value // error with which we closed it
	ended     chan struct{}
}

// newConn starts what a connection needs until it ends.
func newConn(b *builder, l *link) *conn {
	c := &conn{builder: b, link: l, ended: make(chan struct{})}
	c.mute.Store(-1)
	run := b.pool.running.Go
	run(func() { ssh.DiscardRequests(l.requests) })
	run(func() { rejectChannels(l.channels) })
	run(c.keepAlive)
	b.pool.add(c)
	run(func() {
		err := l.Wait()
		c.setCause(err)
		close(c.ended)
		b.connEnded(c)
		b.pool.drop(c)
	})
	return c
}

// rejectChannels answers a builder that wants something of us.
func rejectChannels(channels <-chan ssh.NewChannel) {
	for ch := range channels {
		ch.Reject(ssh.Prohibited, "not here")
	}
}

// abort closes the connection with all that runs on it. It may be called by
// anybody, several times.
func (c *conn) abort(cause error) {
	c.setCause(cause)
	c.link.net.Close() // not politely: a peer that does not read would keep us waiting
}

func (c *conn) setCause(err error) {
	c.causeOnce.Do(func() {
		if err == nil {
			err = errors.New("connection closed")
		}
		c.cause.Store(fmt.Errorf("connection lost: %w", err))
	})
}

// lost returns why the connection ended, or nil while it lives.
func (c *conn) lost() error {
	if err, ok := c.cause.Load().(error); ok {
		return err
	}
	return nil
}

// awaitEnd waits a moment for the end of a connection that seems to be lost.
func (c *conn) awaitEnd() {
	select {
	case <-c.ended:
	case <-time.After(closeGrace):
	}
}

// retire keeps new processes off the connection and closes it after its last.
func (c *conn) retire() {
	b := c.builder
	b.mu.Lock()
	c.retired = true
	b.wake()
	empty := c.channels == 0
	b.mu.Unlock()
	if empty {
		c.abort(errUnused)
	}
}

// alive asks the builder for any answer.
func (c *conn) alive() bool {
	_, _, err := c.link.SendRequest(keepAliveRequest, true, nil)
	return err == nil
}

// silent reports whether the builder owes an answer on the connection and nothing
// was heard since.
func (c *conn) silent() bool { return c.link.net.received.Load() == c.mute.Load() }

// proven reports whether the connection may be used. One on which nothing arrived
// for a while has its builder asked first: what goes out to a machine that is gone
// would be missed only when keep-alive notices. The connection is not closed,
// since what runs on it can wait for longer.
func (c *conn) proven(ctx context.Context) bool {
	opts := &c.builder.pool.opts
	before := c.link.net.received.Load()
	switch {
	case c.silent():
		return false
	case c.link.net.quiet() < opts.ProofAfter:
		return true
	}
	answered := make(chan struct{})
	c.builder.pool.running.Go(func() {
		defer close(answered)
		c.alive()
	})
	select {
	case <-answered: // one that has ended shows that to its user
		return true
	case <-ctx.Done():
		return true
	case <-time.After(opts.ProofTimeout):
	}
	if c.link.net.received.Load() != before {
		return true // the answer is behind something large
	}
	c.mute.Store(before)
	c.builder.log.Info("builder does not answer on an open connection", "waited", opts.ProofTimeout.String())
	return false
}

var errUnused = errors.New("closed because nobody used it")

// errRefused says that the builder opens no more channels on this connection.
var errRefused = errors.New("builder opens no further channel")

// start runs a command in the place that the caller has taken on the connection;
// it is given back unless the error is errRefused. There is no time limit:
// whoever has one leaves it to its fate, see [builder.startDaemon].
func (c *conn) start(command string) (*remoteProcess, error) {
	ch, requests, err := c.link.OpenChannel("session", nil)
	var refusal *ssh.OpenChannelError
	if errors.As(err, &refusal) {
		return nil, fmt.Errorf("%w: %s", errRefused, clean(refusal.Message))
	}
	if err != nil {
		c.builder.giveBack(c)
		return nil, c.fault(err)
	}
	p := newRemote(c, ch, requests)
	ok, err := ch.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{command}))
	switch {
	case err != nil:
		err = c.fault(err)
	case !ok:
		err = c.builder.target.faultf(Protocol, "", "its sshd refuses to run '%s'", command)
	default:
		return p, nil
	}
	p.Close()
	return nil, err
}

// fault makes an Error of one that came of the connection's end.
func (c *conn) fault(err error) error {
	if cause := c.lost(); cause != nil {
		err = cause
	}
	return c.builder.target.fault(Lost, err)
}

// keepAliveRequest is OpenSSH's. Every sshd answers a request that it does not
// know with a refusal, which is as good a sign of life.
const keepAliveRequest = "keepalive@openssh.com"

// keepAlive closes a connection on which nothing arrives any more. Any byte
// counts: an answer may be queued behind minutes of upload on a slow line.
func (c *conn) keepAlive() {
	opts := c.builder.pool.opts
	tick := time.NewTicker(opts.KeepAlive)
	defer tick.Stop()
	seen, silent := int64(0), 0
	for {
		select {
		case <-c.ended:
			return
		case <-tick.C:
		}
		if received := c.link.net.received.Load(); received != seen {
			seen, silent = received, 0
			continue
		}
		if silent++; silent > opts.KeepAliveMisses {
			c.abort(fmt.Errorf("no sign of life for %s", time.Duration(silent)*opts.KeepAlive))
			return
		}
		c.askOnce()
	}
}

// askOnce asks for a sign of life unless an answer is still awaited.
func (c *conn) askOnce() {
	if !c.asked.CompareAndSwap(0, int64(time.Since(c.link.net.opened))) {
		return
	}
	c.builder.pool.running.Go(func() {
		defer c.asked.Store(0)
		c.alive()
	})
}
