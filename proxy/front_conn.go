package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/sshconn"
)

// frontConn is one client connection. Towards the SSH library it is the socket:
// a net.Conn that keeps its own deadlines and reads in a way that suits SSH.
type frontConn struct {
	net.Conn
	front  *Front
	remote netip.AddrPort
	// balancer says that the connection is a listed balancer's own, by its header: it
	// looks whether we live and does not log in, for which it pays nothing. Set before
	// the login.
	balancer bool

	// ctx is the parent of every command's context; cancel is called when the
	// connection ended or the front stops the hard way.
	ctx    context.Context
	cancel context.CancelCauseFunc
	// stopping is closed once commands are to come to their end.
	stopping chan struct{}

	ident   string          // the client's identification line; set before the key exchange
	peer    func() ssh.Conn // nil until authenticated; set before the key exchange
	waiter  *waiter
	grace   *time.Timer // closes the connection unless the login gets through
	unused  *time.Timer // closes it unless a channel is opened; set when the login is through
	alive   *keepAlive  // set when the login is through
	auth    authRecord
	globals rate // owned by the goroutine of global requests

	intake      intake       // what sessions have not read
	gate        readGate     // what is received waits here while a session ends
	received    atomic.Int64 // bytes, also a sign of life
	sent        atomic.Int64 // bytes
	commandSeen atomic.Bool  // from the first command on acknowledgements may be late

	// Owned by whoever reads.
	raw    syscall.RawConn // nil where there is no socket
	reads  int             // up to quickReads
	replay []byte          // read while looking for the identification line
	ahead  []byte          // unread part of block
	block  *[]byte         // from readBlocks, nil unless ahead has bytes
	paid   bool            // there was memory for what was received, see front_memory.go
	bulk   bool            // the last read filled what it was given

	out       *sshconn.Writer
	announced bool // the library's copy of our identification line was swallowed; owned by the writer

	// Set by the goroutine of serveConn, which runs the login too.
	granted  string // principal whose tally counts this connection
	loggedIn atomic.Bool

	leaving atomic.Pointer[Dismissal] // why it ends; changed under mu
	working atomic.Int64              // see Exec.Working

	sessions sync.WaitGroup // and jumps

	mu       sync.Mutex // guards what follows
	ended    bool       // no more sessions
	stopped  bool       // stopping is closed
	login    *Login     // nil before; without Running
	serving  []*frontSession
	carrying []*jump
	goodbye  *time.Timer // the next step of a dismissal; nil without one
	running  int         // sessions
	jumping  int         // jumps
	// quietSince is when the last of them ended, or when a drain began without any.
	quietSince time.Time
	refusing   int // channels whose refusal is being written
	opens      rate
	fault      offence // what it is guilty of if it does not log in
	known      bool    // it showed a key that counts
	why        string  // why it ended, if not by the peer's will; the first reason stays
	vanished   bool    // the reason is that the peer was lost, see front_lost.go
}

func newFrontConn(ctx context.Context, f *Front, conn net.Conn) *frontConn {
	c := &frontConn{Conn: conn, front: f, remote: addrPort(conn.RemoteAddr()), stopping: make(chan struct{})}
	c.paid = true
	c.intake.moved, c.intake.sent = make(chan struct{}, 1), &c.sent
	c.out = sshconn.NewWriter(senderFunc(c.send))
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if socket, ok := conn.(syscall.Conn); ok {
		c.raw, _ = socket.SyscallConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetNoDelay(true) // every packet of SSH is worth sending
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4})
	}
	return c
}

func addrPort(addr net.Addr) netip.AddrPort {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}

// SetDeadline does nothing: gliderlabs/ssh sets it at every read and write, which
// would erase the deadlines that we rely on.
func (c *frontConn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing, see SetDeadline.
func (c *frontConn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing, see SetDeadline.
func (c *frontConn) SetWriteDeadline(time.Time) error { return nil }

// Write sends, within [Limits.WriteStall]. The first write is swallowed: it is the
// library's identification line, and ours has been sent already, because clients
// may wait for it before they send theirs.
func (c *frontConn) Write(p []byte) (int, error) {
	if !c.announced && bytes.Equal(p, []byte(serverIdent+"\r\n")) {
		c.announced = true
		return len(p), nil
	}
	return c.out.Write(p)
}

// senderFunc is a function as an io.Writer.
type senderFunc func([]byte) (int, error)

func (f senderFunc) Write(p []byte) (int, error) { return f(p) }

// send closes the connection when time is up: the library would go on reading.
func (c *frontConn) send(p []byte) (int, error) {
	limit := c.front.limits.WriteStall
	c.Conn.SetWriteDeadline(time.Now().Add(limit))
	n, err := c.Conn.Write(p)
	c.front.counters.sent.Add(int64(n))
	c.sent.Add(int64(n))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.lose(stalled(limit))
	}
	c.noteLoss(err)
	return n, err
}

func stalled(limit time.Duration) string { return fmt.Sprintf("client read nothing for %s", limit) }

// readBlocks are the big read buffers, lent to connections in bulk transfer.
var readBlocks = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// Read reads ahead in blocks of 64 KiB while the socket has plenty, which saves
// system calls, and straight into p otherwise: nobody waits holding a block.
func (c *frontConn) Read(p []byte) (int, error) {
	switch {
	case len(c.replay) > 0:
		n := copy(p, c.replay)
		c.replay = c.replay[n:]
		return n, nil
	case len(c.ahead) > 0:
		return c.readAhead(p), nil
	case c.bulk && len(p) > 0:
		return c.readBlock(p)
	}
	n, err := c.receive(p)
	c.bulk = n == len(p) && n >= 4<<10
	return n, err
}

func (c *frontConn) readBlock(p []byte) (int, error) {
	c.block = readBlocks.Get().(*[]byte)
	n, err := c.receive(*c.block)
	c.bulk = n == len(*c.block)
	c.ahead = (*c.block)[:n]
	if n == 0 {
		c.returnBlock()
		return 0, err
	}
	return c.readAhead(p), nil // an error comes again at the next read
}

func (c *frontConn) readAhead(p []byte) int {
	n := copy(p, c.ahead)
	if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
		c.returnBlock()
	}
	return n
}

func (c *frontConn) returnBlock() {
	readBlocks.Put(c.block)
	c.block, c.ahead = nil, nil
}

// quickReads is after how many reads at the latest we go back to delayed
// acknowledgements. OpenSSH has Nagle's algorithm on until its session runs and
// waits for our acknowledgement, 40 ms each time, twice during a login.
const quickReads = 64

func (c *frontConn) receive(p []byte) (int, error) {
	c.awaitMemory()
	n, err := c.Conn.Read(p)
	c.noteLoss(err)
	c.gate.pass()
	received := c.received.Add(int64(n))
	c.front.counters.received.Add(int64(n))
	if c.loggedIn.Load() {
		c.paid = c.admit(n) // if not, the next read waits
	} else if received > c.front.limits.LoginBytes {
		c.abort("too much before the login")
	}
	if c.reads < quickReads && c.raw != nil && !c.commandSeen.Load() {
		c.reads++
		acknowledgeNow(c.raw)
	}
	return n, err
}

// abort closes the connection for a reason of ours.
func (c *frontConn) abort(reason string) {
	c.mu.Lock()
	if c.why == "" {
		c.why = reason
	}
	c.mu.Unlock()
	c.Conn.Close()
}

// reason is why the connection ended, "" if it was the peer who closed it.
func (c *frontConn) reason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// kill is the hard end of Shutdown.
func (c *frontConn) kill() {
	c.cancel(nil)
	c.abort("shutdown")
}

// closeIfUnused ends a connection that runs no session, when it is to end, and tells
// those that run.
func (c *frontConn) closeIfUnused() {
	c.mu.Lock()
	c.stop()
	unused := c.running == 0
	c.mu.Unlock()
	if unused {
		c.abort("shutdown")
	}
}

// where says where the peer is, for a log. The address comes first and is ours, so no text of
// the peer can be mistaken for it.
func (c *frontConn) where() []any {
	return []any{"addr", c.remote.Addr().String(), "port", c.remote.Port()}
}

// maxPeerText is how much of a text of the peer's choice gets into a log, in bytes.
const maxPeerText = 128

// quotePeer makes text of the peer's choice fit for a log.
func quotePeer(text string) string {
	if len(text) > maxPeerText {
		text = text[:maxPeerText] + "..."
	}
	return strconv.QuoteToASCII(text)
}
