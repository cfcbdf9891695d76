package proxy

import (
	"net"
	"slices"
	"testing"
	"time"
)

// pieceConn notes how long the pieces are that it is given.
type pieceConn struct {
	net.Conn
	pieces []int
}

func (c *pieceConn) Write(p []byte) (int, error) {
	c.pieces = append(c.pieces, len(p))
	return len(p), nil
}
func (c *pieceConn) RemoteAddr() net.Addr             { return nil }
func (c *pieceConn) SetWriteDeadline(time.Time) error { return nil }

// Guards against packets that go to clients in two pieces.
func TestClientsAreSentWholePackets(t *testing.T) {
	var socket pieceConn
	c := newFrontConn(t.Context(), &Front{limits: Limits{}.withDefaults()}, &socket)
	defer c.cancel(nil)
	defer c.out.Stop()
	c.Write(make([]byte, 4096)) // as the library does it
	c.Write(make([]byte, 28<<10))
	if !slices.Equal(socket.pieces, []int{32 << 10}) {
		t.Errorf("pieces of %v bytes", socket.pieces)
	}
}
