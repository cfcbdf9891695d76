package main

import (
	"net"
	"sync"
	"syscall"
)

// fewConns is a listener with room for some connections at once.
type fewConns struct {
	net.Listener
	room chan struct{}
}

// withRoomFor gives a listener room for n connections.
func withRoomFor(n int, l net.Listener) *fewConns {
	return &fewConns{Listener: l, room: make(chan struct{}, n)}
}

// Accept waits for room first, so that those who wait cost nothing.
func (l *fewConns) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &fewConn{Conn: conn, leave: sync.OnceFunc(func() { <-l.room })}, nil
}

type fewConn struct {
	net.Conn
	leave func()
}

func (c *fewConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// SyscallConn is that of the connection, which is one of the system's.
func (c *fewConn) SyscallConn() (syscall.RawConn, error) { return c.Conn.(syscall.Conn).SyscallConn() }
