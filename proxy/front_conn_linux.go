package proxy

import (
	"math"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// acknowledgeNow sends the acknowledgement that the kernel holds back. The option
// does not last, so it is set after each read.
func acknowledgeNow(raw syscall.RawConn) {
	raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	})
}

// sinceAcknowledged is how long ago the peer's kernel acknowledged anything. It can
// be asked after the end of a connection, too, as long as the socket is open.
func sinceAcknowledged(raw syscall.RawConn) time.Duration {
	since := time.Duration(math.MaxInt64)
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			since = time.Duration(info.Last_ack_recv) * time.Millisecond
		}
	})
	return since
}

// queued is how many connections wait to be accepted, 0 if that is not known.
func queued(l net.Listener) (n int) {
	socket, ok := l.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int(info.Unacked) // of a socket that listens
		}
	})
	return n
}
