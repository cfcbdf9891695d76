package metrics

import "time"

// State is how things stand at one moment. Numbers that end in Total have grown since
// the program started, as have those of Cache that the comments call sums.
type State struct {
	// Draining says that the proxy begins nothing new and ends when what runs has
	// ended; Ready that it takes clients.
	Draining, Ready bool
	// AuditFailing says that the audit log cannot be written.
	AuditFailing bool

	Front Front
	// Refusals are how many were turned away or made to wait, by what was
	// in the way. Words that this package does not know count as [Other].
	Refusals map[string]uint64
	Queue    Queue
	Builders []Builder // of the policy, each name once
	Cache    Cache
}

// Front is the side of the clients.
type Front struct {
	// Connections are open, Pending of them have not logged in yet.
	Connections, Pending int
	// Sessions and Jumps are open channels.
	Sessions, Jumps int
	// ReceivedTotal and SentTotal are bytes on the sockets, with what SSH adds.
	ReceivedTotal, SentTotal int64
}

// Queue is the builds that wait for a slot.
type Queue struct {
	// Length by system. Systems that the policy does not name count as [Other].
	Length map[string]int
	// Oldest is for how long the first of them has waited, 0 if none waits.
	Oldest time.Duration
}

// Breaker is what keeps builds from a builder that failed some.
type Breaker uint8

// The states of a breaker.
const (
	BreakerClosed   Breaker = iota // builds go there
	BreakerHalfOpen                // one at a time, to see whether it works
	BreakerOpen                    // none, for a while
)

// Builder is one builder.
type Builder struct {
	Name string
	// Slots may be taken and SlotsUsed are. Fetching is of how many builds that have
	// ended the outputs are still on their way.
	Slots, SlotsUsed, Fetching int
	// Up says that builds may begin there now. Reachable, Drained, Overloaded, Asleep
	// and Breaker say what is in the way.
	Up, Reachable, Drained, Overloaded, Asleep bool
	Breaker                                    Breaker
	// DifferingTotal is how many inputs it was found to hold with other bytes.
	DifferingTotal int64

	// Connections to it are open, with Sessions in use and SessionsIdle waiting.
	Connections, Sessions, SessionsIdle int
	// DialsFailedTotal are connections that did not come about.
	DialsFailedTotal int64
	// ReceivedTotal and SentTotal are bytes on the sockets, with what SSH adds.
	ReceivedTotal, SentTotal int64

	// Load is what the builder last said of itself, nil if that is not known.
	Load *Load
}

// Load is how busy a builder is with all that runs there.
type Load struct {
	Load1           float64
	MemoryAvailable int64 // bytes
	DiskFree        int64 // bytes, where its store is
}

// Cache is the store of the proxy. Bytes, Limit, Paths, Arriving, Quarantined and
// QuarantinedBytes are as of now, all others are sums.
type Cache struct {
	Bytes, Limit                  int64
	Paths, Arriving               int64
	Hits, Misses                  int64
	Added, Evictions              int64
	EvictedBytes                  int64
	Differing                     int64
	Broken, Corrupt, Unpublished  int64
	ScrubbedBytes                 int64
	Quarantined, QuarantinedBytes int64
}
