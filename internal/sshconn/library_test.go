package sshconn

import (
	"crypto/ed25519"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// joinedConn is a socket behind a Writer, which notes the pieces that it is given.
type joinedConn struct {
	net.Conn
	out *Writer

	mu     sync.Mutex
	pieces []int
}

func (c *joinedConn) Write(p []byte) (int, error) { return c.out.Write(p) }

// note is what the Writer writes to.
type note struct{ c *joinedConn }

func (n note) Write(p []byte) (int, error) {
	n.c.mu.Lock()
	n.c.pieces = append(n.c.pieces, len(p))
	n.c.mu.Unlock()
	return n.c.Conn.Write(p)
}

// Guards against a library that writes otherwise than we think.
func TestTheLibrarysPacketsLeaveInOnePiece(t *testing.T) {
	const packets, length = 32, 32 << 10
	near, far := tcpPair(t)
	server := &joinedConn{Conn: near}
	server.out = NewWriter(note{server})
	t.Cleanup(server.out.Stop)
	serving := make(chan error, 1)
	go func() { serving <- serve(server, make([]byte, packets*length)) }()

	conn, channels, requests, err := ssh.NewClientConn(far, "server", &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		t.Fatal(err)
	}
	client := ssh.NewClient(conn, channels, requests)
	defer client.Close()
	ch, reqs, err := client.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	if n, err := io.Copy(io.Discard, ch); n != packets*length || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if err := <-serving; err != nil {
		t.Fatal(err)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	whole := 0
	for _, n := range server.pieces {
		if n > length {
			whole++
		}
	}
	if whole != packets || slices.Contains(server.pieces, libraryBuffer) {
		t.Errorf("%d of %d packets came whole: pieces of %v bytes", whole, packets, server.pieces)
	}
}

// serve sends data to the first channel.
func serve(conn net.Conn, data []byte) error {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return err
	}
	go ssh.DiscardRequests(requests)
	ch, reqs, err := (<-channels).Accept()
	if err != nil {
		return err
	}
	go ssh.DiscardRequests(reqs)
	if _, err := ch.Write(data); err != nil {
		return err
	}
	return ch.Close()
}

func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}
