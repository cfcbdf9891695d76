package upstream

import "sync/atomic"

// traffic is what has passed between us and a builder since it was first configured,
// over all ways that led there.
type traffic struct {
	// received and sent are bytes on the sockets, with what ssh adds.
	received, sent atomic.Int64
	// dialsFailed are connections that did not come about.
	dialsFailed atomic.Int64
}

// Counts are numbers about one builder.
type Counts struct {
	// Connections are open. Sessions are in use or being opened, the probe of the load
	// among them, and SessionsIdle wait for their next user.
	Connections, Sessions, SessionsIdle int
	// DialsFailed, Received and Sent are sums since the builder was first configured:
	// connections that did not come about, and bytes on the sockets.
	DialsFailed, Received, Sent int64
}

// Counts returns the numbers of a builder; zero for one that is not configured.
func (p *Pool) Counts(name string) Counts {
	p.mu.Lock()
	b := p.builders[name]
	p.mu.Unlock()
	if b == nil {
		return Counts{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.target.traffic
	return Counts{
		Connections: len(b.conns), Sessions: max(0, b.inUse()-len(b.idle)), SessionsIdle: len(b.idle),
		DialsFailed: t.dialsFailed.Load(), Received: t.received.Load(), Sent: t.sent.Load(),
	}
}
