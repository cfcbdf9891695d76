package proxy

import (
	"sync/atomic"

	"nixbastion/internal/metrics"
)

// frontCounters are what the front has no other record of.
type frontCounters struct {
	// received and sent are bytes on the sockets of all clients so far.
	received, sent atomic.Int64
	sessions       atomic.Int64 // open now
}

// state is how things stand with clients.
func (f *Front) state() metrics.Front {
	return metrics.Front{
		Connections: f.openConnections(), Pending: f.room.pending(),
		Sessions: int(f.counters.sessions.Load()), Jumps: len(f.jumps),
		ReceivedTotal: f.counters.received.Load(), SentTotal: f.counters.sent.Load(),
	}
}

func (f *Front) openConnections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns)
}

// pending is how many are waiting for their login.
func (r *waitingRoom) pending() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting)
}
