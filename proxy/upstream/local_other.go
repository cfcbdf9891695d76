//go:build !linux

package upstream

import (
	"context"
	"net"
)

// hangUp shuts a connection. Whether the other end is closed, too, cannot be
// seen here.
func hangUp(_ context.Context, conn net.Conn) bool {
	if unix, ok := conn.(*net.UnixConn); ok {
		unix.CloseWrite()
		unix.CloseRead()
	}
	return false
}
