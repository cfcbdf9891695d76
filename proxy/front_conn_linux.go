package proxy

import "syscall"

// acknowledgeNow sends the acknowledgement that the kernel holds back. The option
// does not last, so it is set after each read.
func acknowledgeNow(raw syscall.RawConn) {
	raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	})
}
