package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// writeGrace is how long a process that is to end may take to read what is
	// being written to it. After that its channel is closed in the middle.
	writeGrace = 2 * time.Second
	// closeGrace is how long a builder may take to confirm that a channel is
	// closed. After that the whole connection is closed.
	closeGrace = time.Second
	// settleTime is how long the rest of a log is waited for after its build was
	// answered. A line with much to carry may take a while.
	settleTime = 3 * time.Second
)

var errProcessClosed = errors.New("session is closed")

// remoteProcess is a program that runs on a builder, seen through its channel.
//
// It is asked to end by the end of its input: that is what makes a Nix daemon
// kill its builds, and only a program that ends by itself has its exit seen. An
// sshd that is told to close the channel does so at once, whether its program
// still runs or not.
type remoteProcess struct {
	conn   *conn
	ch     ssh.Channel
	stderr stderr
	parked parked

	// writing holds a token while somebody writes: the ssh library wants the end
	// of input said by nobody else meanwhile. reading holds one while somebody
	// reads: of two readers the library wakes one.
	writing, reading chan struct{}

	// shaken says that the daemon's handshake is done. What is written before to a
	// program that has ended vanishes without an error, so that one gets to read
	// what it said instead.
	shaken atomic.Bool

	// waiting counts reads and writes of the user that have not returned.
	waiting atomic.Int32

	// deaf says that the builder does not answer on the channel.
	deaf atomic.Bool

	closeOnce sync.Once
	closing   chan struct{} // closed by Close

	exited chan struct{} // closed when the builder reports the exit
	closed chan struct{} // closed when the channel is, by either side
	left   chan struct{} // closed when nothing is left of the program here
	status exitStatus    // valid once exited is closed
	ended  bool          // valid once left is closed: the program has ended
}

// exitStatus is how a program ended.
type exitStatus struct {
	known bool // false after a signal and after a report that makes no sense
	code  uint32
}

// newRemote takes over a channel on which a program runs, and starts what must
// be done for it until it is gone.
func newRemote(c *conn, ch ssh.Channel, requests <-chan *ssh.Request) *remoteProcess {
	p := &remoteProcess{
		conn: c, ch: ch,
		writing: make(chan struct{}, 1), reading: make(chan struct{}, 1), closing: make(chan struct{}),
		exited: make(chan struct{}), closed: make(chan struct{}), left: make(chan struct{}),
	}
	stderrDone := make(chan struct{})
	run := c.builder.pool.running.Go
	run(func() { p.serveRequests(requests) })
	run(func() {
		defer close(stderrDone)
		io.Copy(&p.stderr, ch.Stderr()) // always read: unread bytes would stop standard output, too
	})
	run(func() {
		p.supervise()
		<-stderrDone
		c.builder.giveBack(c)
		close(p.left)
	})
	return p
}

// serveRequests takes the report of the exit and ends with the channel. It must
// always read on, or the whole connection stands still.
func (p *remoteProcess) serveRequests(requests <-chan *ssh.Request) {
	defer close(p.closed)
	reported := false
	for req := range requests {
		if (req.Type == "exit-status" || req.Type == "exit-signal") && !reported {
			reported = true
			if req.Type == "exit-status" && len(req.Payload) == 4 {
				p.status = exitStatus{known: true, code: binary.BigEndian.Uint32(req.Payload)}
			}
			close(p.exited)
		}
		req.Reply(false, nil)
	}
}

// Read reads standard output. What arrives after Close is lost.
func (p *remoteProcess) Read(b []byte) (int, error) {
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	n, err := p.parked.read(p.output(), b)
	if isClosed(p.closing) {
		return 0, errProcessClosed // bytes before these may be missing
	}
	return n, err
}

// output is standard output, also after Close.
func (p *remoteProcess) output() io.Reader { return output{p} }

type output struct{ p *remoteProcess }

func (o output) Read(b []byte) (int, error) {
	o.p.reading <- struct{}{}
	defer func() { <-o.p.reading }()
	return o.p.ch.Read(b)
}

// Write writes to standard input.
func (p *remoteProcess) Write(b []byte) (int, error) {
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	select {
	case p.writing <- struct{}{}:
	case <-p.closing:
		return 0, errProcessClosed
	}
	defer func() { <-p.writing }()
	if isClosed(p.closing) {
		return 0, errProcessClosed
	}
	n, err := p.ch.Write(b)
	if err == io.EOF && !p.shaken.Load() {
		return len(b), nil
	}
	return n, err
}

func (p *remoteProcess) Close() error {
	p.closeOnce.Do(func() { close(p.closing) })
	return nil
}

// supervise returns when the channel is closed.
func (p *remoteProcess) supervise() {
	asked := false
	select {
	case <-p.closing:
		asked = p.hangUp()
	case <-p.closed: // what it said before may still be read
	}
	p.ended = isClosed(p.exited) || !asked && p.conn.alive()
}

// hangUp makes the program end, or gives it up, and returns when the channel is
// closed. It reports whether it was closed because we asked for it before the
// program ended.
func (p *remoteProcess) hangUp() (asked bool) {
	run, limit := p.conn.builder.pool.running.Go, p.conn.builder.pool.opts.EndTimeout
	run(func() { p.insist(limit) })
	run(func() {
		io.Copy(io.Discard, p.output()) // or what it still has to say would keep it from ending
	})
	if !p.endInput() {
		p.ch.Close()
		<-p.closed
		return true
	}
	select {
	case <-p.exited:
		p.ch.Close()
	case <-p.closed:
	case <-time.After(limit):
		asked = true
		p.conn.retire() // its sshd may count the program as one of the connection's sessions for ever
		p.ch.Close()
	}
	<-p.closed
	return asked
}

// insist closes the whole connection when the channel is still open after limit, by
// when its end was asked for. Where nothing arrives on the connection at all, the
// builder may not have heard that, and keep-alive decides how long it is waited for,
// with all that runs there; but not while somebody is stuck in an operation.
func (p *remoteProcess) insist(limit time.Duration) {
	wait := func(d time.Duration) (closed bool) {
		select {
		case <-p.closed:
			return true
		case <-time.After(d):
			return false
		}
	}
	if wait(limit) {
		return
	}
	received := &p.conn.link.net.received
	before := received.Load()
	p.conn.askOnce()
	for {
		silent := received.Load() == before
		if wait(closeGrace) {
			return
		}
		if !silent || p.shaken.Load() && p.waiting.Load() > 0 {
			p.conn.abort(errors.New("a session did not end after its input had ended"))
			return
		}
	}
}

// endInput ends the program's standard input, unless somebody is stuck in
// writing to it.
func (p *remoteProcess) endInput() bool {
	select {
	case p.writing <- struct{}{}:
		p.ch.CloseWrite() // the token stays: nobody writes any more
		return true
	case <-p.closed:
		return true
	case <-time.After(min(writeGrace, p.conn.builder.pool.opts.EndTimeout)):
		return false
	}
}

func (p *remoteProcess) greeted() { p.shaken.Store(true) }

func (p *remoteProcess) watch(spoiled func()) {
	p.parked.watch(p.output(), spoiled, p.conn.builder.pool.running.Go)
}

func (p *remoteProcess) spoiled() bool { return p.parked.spoiled() }

func (p *remoteProcess) over() bool { return isClosed(p.closed) || p.deaf.Load() }

func (p *remoteProcess) proven(ctx context.Context) bool { return p.conn.proven(ctx) }

func (p *remoteProcess) silent() bool { return p.conn.silent() }

func (p *remoteProcess) server() string { return clean(string(p.conn.link.ServerVersion())) }

func (p *remoteProcess) gone() <-chan struct{} { return p.left }

func (p *remoteProcess) endSeen() bool { return p.ended }

func (p *remoteProcess) lost() error { return p.conn.lost() }

// remark waits, since both come after the end of standard output.
func (p *remoteProcess) remark() remark {
	select {
	case <-p.left:
	case <-time.After(closeGrace):
	}
	r := remark{stderr: p.stderr.tail.String()}
	if isClosed(p.exited) {
		r.status = p.status
	}
	if !r.status.known {
		p.conn.awaitEnd() // its streams end a moment before it does
	}
	return r
}

func (p *remoteProcess) tap(w io.Writer) { p.stderr.tap(w) }

func (p *remoteProcess) untap(ctx context.Context) {
	limit, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	p.settle(limit)
	p.stderr.tap(nil)
}

func (p *remoteProcess) forget() { p.stderr.tail.reset() }

// settle waits until what the program printed on its standard error before its
// last answer has been read, or the program has ended.
//
// A program prints a log before the answer, but sshd has the two from different
// pipes: when both wait it sends the answer first, and of a pipe no more than 16
// KiB a turn. It looks at its pipes and then at what came from us, once a turn
// each. So whatever waited in the pipe when it answered one request of ours is
// sent, at least in part, before it answers the next. Between two answers that
// have nothing between them there was nothing in the pipe.
func (p *remoteProcess) settle(ctx context.Context) {
	for quiet := 0; quiet < 2; quiet++ {
		before := p.stderr.taken.Load()
		if !p.echo(ctx) || !pause(ctx, handOver) {
			return
		}
		if p.stderr.taken.Load() != before {
			quiet = -1
		}
	}
}

// handOver is how long the goroutine that reads standard error may take for what
// the ssh library has for it. The library does not tell whether it has anything.
const handOver = 5 * time.Millisecond

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// echo asks the builder's sshd for any answer on the channel. Without one it
// waits for the end of the program or of ctx.
func (p *remoteProcess) echo(ctx context.Context) bool {
	answered := make(chan bool, 1)
	p.conn.builder.pool.running.Go(func() {
		_, err := p.ch.SendRequest(keepAliveRequest, true, nil)
		answered <- err == nil
	})
	select {
	case ok := <-answered:
		if ok {
			return true
		}
	case <-ctx.Done():
		p.deaf.Store(true) // the next request would wait for the answer to this one
		return false
	}
	select {
	case <-p.left:
	case <-ctx.Done():
	}
	return false
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
