package proxy

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// memPipe is one direction of a connection in memory. Unlike net.Pipe it has a
// buffer, since both ends of an SSH connection write first; unlike a socket it
// works in a synctest bubble, where time is virtual.
type memPipe struct {
	mu       sync.Mutex
	cond     *sync.Cond
	buf      []byte
	room     int
	closed   bool
	deadline time.Time // of writes
}

func newMemPipe() *memPipe {
	p := &memPipe{room: 64 << 10}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *memPipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.buf) == 0 && !p.closed {
		p.cond.Wait()
	}
	if len(p.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.buf)
	p.buf = p.buf[n:]
	p.cond.Broadcast()
	return n, nil
}

func (p *memPipe) Write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		switch {
		case p.closed:
			return n, io.ErrClosedPipe
		case !p.deadline.IsZero() && !time.Now().Before(p.deadline):
			return n, os.ErrDeadlineExceeded
		case len(p.buf) >= p.room:
			p.cond.Wait()
			continue
		}
		m := min(len(b), p.room-len(p.buf))
		p.buf = append(p.buf, b[:m]...)
		n, b = n+m, b[m:]
		p.cond.Broadcast()
	}
	return n, nil
}

func (p *memPipe) setDeadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	time.AfterFunc(time.Until(t), p.cond.Broadcast)
}

// shrink is how little the pipe holds from now on.
func (p *memPipe) shrink(room int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.room = room
}

func (p *memPipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.cond.Broadcast()
}

// memConn is one end of a connection in memory.
type memConn struct {
	in, out *memPipe
	remote  netip.AddrPort
}

func newMemConn(client netip.AddrPort) (clientEnd, serverEnd *memConn) {
	up, down := newMemPipe(), newMemPipe()
	return &memConn{in: down, out: up, remote: netip.MustParseAddrPort("10.0.0.1:22")},
		&memConn{in: up, out: down, remote: client}
}

func (c *memConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *memConn) Write(b []byte) (int, error) { return c.out.Write(b) }

func (c *memConn) Close() error {
	c.in.close()
	c.out.close()
	return nil
}

func (c *memConn) LocalAddr() net.Addr                { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 22} }
func (c *memConn) RemoteAddr() net.Addr               { return net.TCPAddrFromAddrPort(c.remote) }
func (c *memConn) SetDeadline(t time.Time) error      { return c.SetWriteDeadline(t) }
func (c *memConn) SetReadDeadline(time.Time) error    { return nil }
func (c *memConn) SetWriteDeadline(t time.Time) error { c.out.setDeadline(t); return nil }

// memListener hands out connections in memory.
type memListener struct {
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
	fail   chan error // errors that Accept returns
}

func newMemListener() *memListener {
	return &memListener{queue: make(chan net.Conn), closed: make(chan struct{}), fail: make(chan error)}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.queue:
		return conn, nil
	case err := <-l.fail:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 22} }

func (l *memListener) dial(from netip.AddrPort) (*memConn, error) {
	client, server := newMemConn(from)
	select {
	case l.queue <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
