package upstream

import (
	"bufio"
	"context"
	"net"
	"sync/atomic"
	"time"

	"nixbastion/internal/sshconn"
)

// readBuffer is what is read from a builder's socket at once, in bytes. The ssh
// library alone reads 4 KiB at a time, which costs a quarter of the rate of bulk
// data. There are few connections to builders, so each has its buffer.
const readBuffer = 64 << 10

// netConn is the network connection under an ssh connection.
type netConn struct {
	net.Conn
	in  *bufio.Reader
	out *sshconn.Writer
	// received counts bytes: any of them is a sign of life. The last came at heard,
	// in ns after opened.
	received, heard atomic.Int64
	opened          time.Time
	traffic         *traffic
}

func newNetConn(c net.Conn, t *traffic) *netConn {
	return &netConn{Conn: c, in: bufio.NewReaderSize(c, readBuffer), out: sshconn.NewWriter(c), opened: time.Now(), traffic: t}
}

// Write gives out each packet in one piece.
func (c *netConn) Write(p []byte) (int, error) {
	n, err := c.out.Write(p)
	c.traffic.sent.Add(int64(n))
	return n, err
}

// Close closes the socket.
func (c *netConn) Close() error {
	err := c.Conn.Close()
	c.out.Stop()
	return err
}

// Read is called by one goroutine of the ssh library.
func (c *netConn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.received.Add(int64(n))
	c.traffic.received.Add(int64(n))
	c.heard.Store(int64(time.Since(c.opened)))
	return n, err
}

// quiet is for how long nothing has arrived.
func (c *netConn) quiet() time.Duration {
	return time.Since(c.opened) - time.Duration(c.heard.Load())
}

// dialNet is the default of Options.Dial. Go sets TCP_NODELAY by itself.
func dialNet(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 3,
	}}
	return d.DialContext(ctx, network, address)
}
