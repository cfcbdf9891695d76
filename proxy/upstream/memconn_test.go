package upstream

import (
	"io"
	"net"
	"sync"
	"time"
)

// memPipe is one direction of a connection in memory. Unlike net.Pipe it has a
// buffer, since both ends of an ssh connection write first; unlike a socket it
// works in a synctest bubble.
type memPipe struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	closed bool
	stuck  bool // what is written gets lost, as on a dead network
	held   bool // what is written comes later, as after a moment without network
}

const memPipeSize = 1 << 20

func newMemPipe() *memPipe {
	p := &memPipe{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *memPipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for (len(p.buf) == 0 || p.held) && !p.closed {
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

func (p *memPipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.buf) >= memPipeSize && !p.closed {
		p.cond.Wait()
	}
	if p.closed {
		return 0, io.ErrClosedPipe
	}
	if !p.stuck {
		p.buf = append(p.buf, b...)
		p.cond.Broadcast()
	}
	return len(b), nil
}

func (p *memPipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.cond.Broadcast()
}

func (p *memPipe) hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = held
	p.cond.Broadcast()
}

func (p *memPipe) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck = true
}

// memConn is an end of a connection in memory.
type memConn struct{ in, out *memPipe }

func newMemConn() (client, server *memConn) {
	a, b := newMemPipe(), newMemPipe()
	return &memConn{a, b}, &memConn{b, a}
}

func (c *memConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *memConn) Write(b []byte) (int, error) { return c.out.Write(b) }

func (c *memConn) Close() error {
	c.in.close()
	c.out.close()
	return nil
}

// freeze makes the network swallow everything from now on.
func (c *memConn) freeze() {
	c.in.freeze()
	c.out.freeze()
}

// pause keeps what both sides write until resume.
func (c *memConn) pause() {
	c.in.hold(true)
	c.out.hold(true)
}

func (c *memConn) resume() {
	c.in.hold(false)
	c.out.hold(false)
}

func (c *memConn) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 40000} }
func (c *memConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 22} }
func (c *memConn) SetDeadline(time.Time) error      { return nil }
func (c *memConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }
