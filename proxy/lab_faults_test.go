package proxy

import (
	"bytes"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/ssh"
)

// labFaults are what can be wrong with a builder of a lab while it runs.
type labFaults struct {
	stopped valve
	// garbage makes it answer with bytes that are no protocol.
	garbage atomic.Bool
}

// hang stops the machine, as SIGSTOP does: what is sent to it arrives, and nothing
// comes back. Wake ends that.
func (f *labFaults) hang() { f.stopped.close() }
func (f *labFaults) wake() { f.stopped.open() }

// valve is open at first. Close and open may come in any order.
type valve struct {
	mu  sync.Mutex
	way chan struct{} // nil if it is open
}

func (g *valve) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.way == nil {
		g.way = make(chan struct{})
	}
}

func (g *valve) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.way != nil {
		close(g.way)
		g.way = nil
	}
}

func (g *valve) pass() {
	g.mu.Lock()
	way := g.way
	g.mu.Unlock()
	if way != nil {
		<-way
	}
}

// gatedConn says nothing while its builder is stopped.
type gatedConn struct {
	net.Conn
	gate *valve
}

func (c *gatedConn) Write(p []byte) (int, error) {
	c.gate.pass()
	return c.Conn.Write(p)
}

// spoiledChannel is the output of a program that may have gone mad.
type spoiledChannel struct {
	ssh.Channel
	garbage *atomic.Bool
}

func (c *spoiledChannel) Write(p []byte) (int, error) {
	if c.garbage.Load() {
		return c.Channel.Write(bytes.Repeat([]byte{0xa5}, len(p)))
	}
	return c.Channel.Write(p)
}
