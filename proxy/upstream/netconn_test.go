package upstream

import (
	"net"
	"slices"
	"testing"
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
func (c *pieceConn) Close() error { return nil }

// Guards against packets that go to builders in two pieces.
func TestBuildersAreSentWholePackets(t *testing.T) {
	var socket pieceConn
	c := newNetConn(&socket, &traffic{})
	defer c.Close()
	c.Write(make([]byte, 4096)) // as the library does it
	c.Write(make([]byte, 28<<10))
	if !slices.Equal(socket.pieces, []int{32 << 10}) {
		t.Errorf("pieces of %v bytes", socket.pieces)
	}
}
