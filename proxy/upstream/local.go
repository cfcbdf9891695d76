package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// localProcess is what the daemon of this machine forks for a connection to its socket.
// A connection that is shut makes it kill what it builds; when that is done it
// closes its own end, by which its end is seen.
type localProcess struct {
	builder *builder
	conn    net.Conn
	parked  parked
	atEnd   atomic.Bool // reading has met the end
	shaken  atomic.Bool // see remoteProcess
	asked   atomic.Int64

	closeOnce sync.Once
	closing   chan struct{} // closed by Close

	// hard ends when the connection is to be closed at once, with the cause.
	hard context.Context
	cut  context.CancelCauseFunc

	left  chan struct{} // closed when nothing is left of it here
	ended bool          // valid once left is closed
}

// openSocket opens a session with the daemon of this machine.
func (b *builder) openSocket(ctx context.Context, orIdle bool) (*daemon, error) {
	p, err := b.connectSocket(ctx, orIdle)
	if err != nil {
		return nil, err
	}
	return b.greetSocket(ctx, p)
}

func (b *builder) greetSocket(ctx context.Context, p *localProcess) (*daemon, error) {
	limited, cancel := context.WithTimeout(ctx, b.pool.opts.SessionTimeout)
	defer cancel()
	d, err := b.greet(limited, p, b.target.address)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return d, err
}

func (b *builder) connectSocket(ctx context.Context, orIdle bool) (*localProcess, error) {
	if err := b.takeSocket(ctx, orIdle); err != nil {
		return nil, err
	}
	conn, err := b.dialSocket(ctx)
	if err != nil {
		b.target.traffic.dialsFailed.Add(1)
		b.giveSocketBack()
		return nil, err
	}
	return newLocal(b, conn), nil
}

// takeSocket waits until there may be one more session. With orIdle the error is
// errIdle if there is an idle one meanwhile.
func (b *builder) takeSocket(ctx context.Context, orIdle bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.sockets >= b.maxSessions() && !b.retired {
		if orIdle && b.latestIdle(settingsOf(ctx)) != nil {
			return errIdle
		}
		b.endStranger(settingsOf(ctx))
		if err := b.awaitChange(ctx); err != nil {
			return err
		}
	}
	if b.retired {
		return b.target.faultf(Unreachable, "", "%w any more", errUnknown)
	}
	b.sockets++
	return nil
}

func (b *builder) giveSocketBack() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sockets--
	b.wake()
}

// dialPause is how long a daemon with many connections at a time has to take
// some of them before the next try.
const dialPause = 50 * time.Millisecond

func (b *builder) dialSocket(ctx context.Context) (net.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, b.pool.opts.ConnectTimeout)
	defer cancel()
	for {
		conn, err := b.pool.opts.Dial(limited, "unix", b.target.socket)
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, syscall.EAGAIN): // which is the answer to a full backlog
			return nil, b.target.socketFault(err)
		}
		select {
		case <-time.After(dialPause):
		case <-limited.Done():
			return nil, b.target.socketFault(err)
		}
	}
}

func (t *target) socketFault(err error) error {
	var plain syscall.Errno
	if errors.As(err, &plain) {
		err = plain // the rest repeats the address
	}
	if errors.Is(err, os.ErrPermission) {
		return t.faultf(Auth, fmt.Sprintf("account '%s', as which the proxy runs, must be let in by the modes of the socket and of its directories", t.user),
			"connect to %s: %w", t.address, err)
	}
	return t.faultf(Unreachable, "nix-daemon must run on this machine", "connect to %s: %w", t.address, err)
}

func newLocal(b *builder, conn net.Conn) *localProcess {
	p := &localProcess{builder: b, conn: conn, closing: make(chan struct{}), left: make(chan struct{})}
	p.hard, p.cut = context.WithCancelCause(context.WithoutCancel(b.pool.ctx)) // sessions in use outlive the pool's own work
	b.pool.add(p)
	b.pool.running.Go(p.supervise)
	return p
}

// supervise ends the connection once that is asked for.
func (p *localProcess) supervise() {
	<-p.closing
	ctx, cancel := context.WithTimeout(p.hard, p.builder.pool.opts.EndTimeout)
	defer cancel()
	p.ended = hangUp(ctx, p.conn)
	p.conn.Close()
	p.builder.giveSocketBack()
	p.builder.pool.drop(p)
	close(p.left)
}

// Read reads what the daemon says. What arrives after Close is lost.
func (p *localProcess) Read(b []byte) (int, error) {
	n, err := p.parked.read(p.conn, b)
	p.builder.target.traffic.received.Add(int64(n))
	if isClosed(p.closing) {
		return 0, errProcessClosed
	}
	if err != nil {
		p.atEnd.Store(true)
	}
	return n, err
}

// Write writes to the daemon.
func (p *localProcess) Write(b []byte) (int, error) {
	n, err := p.conn.Write(b)
	p.builder.target.traffic.sent.Add(int64(n))
	switch {
	case isClosed(p.closing):
		return n, errProcessClosed
	case err != nil && !p.shaken.Load():
		return len(b), nil
	}
	return n, err
}

func (p *localProcess) Close() error {
	p.closeOnce.Do(func() { close(p.closing) })
	return nil
}

// abort does not wait for the daemon's end.
func (p *localProcess) abort(cause error) {
	p.cut(cause)
	p.Close()
}

func (p *localProcess) greeted() { p.shaken.Store(true) }

func (p *localProcess) watch(spoiled func()) {
	p.parked.watch(p.conn, spoiled, p.builder.pool.running.Go)
}

func (p *localProcess) spoiled() bool { return p.parked.spoiled() }

func (p *localProcess) over() bool { return p.atEnd.Load() || isClosed(p.closing) }

func (p *localProcess) proven(context.Context) bool { return true }

func (p *localProcess) silent() bool { return false }

func (p *localProcess) server() string { return "unix socket" }

func (p *localProcess) gone() <-chan struct{} { return p.left }

func (p *localProcess) endSeen() bool { return p.ended }

// tap has nothing to hand on: a daemon says everything in the protocol.
func (p *localProcess) tap(io.Writer) {}

func (p *localProcess) untap(context.Context) {}

func (p *localProcess) forget() {}

func (p *localProcess) remark() remark { return remark{} }

func (p *localProcess) lost() error {
	if p.hard.Err() == nil {
		return nil
	}
	return fmt.Errorf("connection lost: %w", context.Cause(p.hard))
}
