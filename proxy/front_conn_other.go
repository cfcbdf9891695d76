//go:build !linux

package proxy

import (
	"net"
	"syscall"
	"time"
)

// acknowledgeNow has no counterpart here; logins take two delayed
// acknowledgements longer.
func acknowledgeNow(syscall.RawConn) {}

// sinceAcknowledged is not known here: a peer whose connection is reset counts as
// killed.
func sinceAcknowledged(syscall.RawConn) time.Duration { return 0 }

// queued is not known here.
func queued(net.Listener) int { return 0 }
