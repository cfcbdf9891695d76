package proxy

import (
	"errors"
	"math"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Limits bound what clients can take from the SSH front. A field that is zero or
// negative means its default; there is no "unlimited".
type Limits struct {
	// LoginGrace is the time from accept to a verified key, on the wall clock,
	// whatever the client sends meanwhile. Default 20 s: Nix clients need less
	// than one, and a trickle of bytes must not hold a place for ever.
	LoginGrace time.Duration
	// LoginBytes is what a client may send before its login is through, in bytes.
	// Default 256 KiB: twenty offers of large keys need 30, and the library would
	// queue 4 MiB for a stranger.
	LoginBytes int64
	// AuthTries is the number of failed attempts per connection, an offer of an
	// unknown key being one. Default 20, so that an agent with a dozen keys gets to
	// its last.
	AuthTries int

	// Pending is the number of connections that have not logged in yet.
	// Default 100: a handshake costs 3 ms of CPU, so more would not be faster.
	Pending int
	// PendingStart is the number from which on newcomers push out slow logins,
	// with a chance that rises from PendingRate percent to certainty at Pending.
	// Default 10 and 30, as OpenSSH's MaxStartups 10:30:100.
	PendingStart, PendingRate int
	// PendingPerSource is how many slow logins one address (IPv4) or /64 (IPv6) may
	// have, and its fair share when all of Pending is taken. Default 10.
	PendingPerSource int
	// SlowLogin is the age from which on a pending login counts as slow.
	// Default 2 s; honest ones need less than one.
	SlowLogin time.Duration

	// Connections is the number of open connections, further ones wait in the
	// listen queue. Default 10,000; the limit of file descriptors, less
	// ReservedFiles, lowers it.
	Connections int
	// ReservedFiles are file descriptors kept for everything else: builders,
	// cache, policy. Default 64.
	ReservedFiles int
	// ConnectionsPerPrincipal applies where a Grant names no number.
	// Default 1,000: a Nix client opens a connection per queued build.
	ConnectionsPerPrincipal int
	// Unused is how long a connection may live without ever opening a channel.
	// Default 10 min: OpenSSH masters open their channels when they are needed.
	Unused time.Duration

	// Sessions is the number of session channels at one time per connection.
	// Default 64; OpenSSH has 10, asyncssh users open 50.
	Sessions int
	// OpensPer10s is the number of channels that may be opened in 10 s per
	// connection; further ones are refused, five times as many end the
	// connection. The same number bounds global requests, and requests of a
	// running session. Default 200.
	OpensPer10s int
	// SessionMemory is what all sessions and jumps together, and input that they have
	// not read, may take, in bytes. Sessions beyond it are refused, and connections that
	// send more wait until it is read. Default a quarter of GOMEMLIMIT if that is set,
	// and at most 256 MiB.
	SessionMemory int64
	// SessionStart is how long a channel may live without asking for a command.
	// Default 10 s. It is extended up to twelve times while the connection is
	// busy: a request may be queued behind the uploads of other channels.
	SessionStart time.Duration
	// Requests is the number of requests of a session before its command.
	// Default 64.
	Requests int
	// EnvVars and EnvBytes bound the variables that are kept, and the length of one
	// name and value together. Default 32 and 4 KiB.
	EnvVars, EnvBytes int
	// CommandBytes is the length of a command. Default 4 KiB; real ones have 40.
	CommandBytes int

	// Jumps is the number of jumps to other hosts at one time per connection.
	// Default 32. All connections together have at most a quarter of Connections
	// for jumps, so that they cannot keep sessions out.
	Jumps int
	// JumpDial is the time for a jump to be resolved and connected. Default 10 s.
	JumpDial time.Duration
	// JumpIdle is how long a jump may live without a byte in either direction.
	// Default 1 h.
	JumpIdle time.Duration

	// KeepAlive is the pause after which a silent peer is asked for a sign of
	// life. Default 15 s.
	KeepAlive time.Duration
	// KeepAliveMisses is how many such pauses may pass after the question before
	// the connection is closed. Default 3.
	KeepAliveMisses int
	// WriteStall is how long a write may stand still before the connection is
	// closed, or the jump that it belongs to. Default 120 s.
	WriteStall time.Duration
	// ResetQuiet is for how long the client's kernel acknowledged nothing when a
	// connection is reset whose client was lost, and not killed. Default 5 s.
	ResetQuiet time.Duration
}

const (
	// defaultConnectionsPerMinute applies where a Grant names no number.
	defaultConnectionsPerMinute = 6000
	// maxUserBytes bounds the login name; longer ones are refused.
	maxUserBytes = 256
	// startExtensions is how often SessionStart is extended on a busy connection.
	startExtensions = 12
	// floodFactor times OpensPer10s ends a connection: refusing costs a goroutine
	// each, and a peer that does not read the refusals would pile them up.
	floodFactor = 5
)

func (l Limits) withDefaults() Limits {
	orDefault(&l.LoginGrace, 20*time.Second)
	orDefault(&l.LoginBytes, 256<<10)
	orDefault(&l.AuthTries, 20)
	orDefault(&l.Pending, 100)
	orDefault(&l.PendingStart, 10)
	orDefault(&l.PendingRate, 30)
	orDefault(&l.PendingPerSource, 10)
	orDefault(&l.SlowLogin, 2*time.Second)
	orDefault(&l.Connections, 10_000)
	orDefault(&l.ReservedFiles, 64)
	orDefault(&l.ConnectionsPerPrincipal, 1000)
	orDefault(&l.Unused, 10*time.Minute)
	orDefault(&l.Sessions, 64)
	orDefault(&l.OpensPer10s, 200)
	orDefault(&l.SessionMemory, memoryLimit())
	orDefault(&l.SessionStart, 10*time.Second)
	orDefault(&l.Requests, 64)
	orDefault(&l.EnvVars, 32)
	orDefault(&l.EnvBytes, 4<<10)
	orDefault(&l.CommandBytes, 4<<10)
	orDefault(&l.Jumps, 32)
	orDefault(&l.JumpDial, 10*time.Second)
	orDefault(&l.JumpIdle, time.Hour)
	orDefault(&l.KeepAlive, 15*time.Second)
	orDefault(&l.KeepAliveMisses, 3)
	orDefault(&l.WriteStall, 120*time.Second)
	orDefault(&l.ResetQuiet, 5*time.Second)
	return l
}

func orDefault[T int | int64 | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// openConnections is Connections lowered to what file descriptors allow.
func (l Limits) openConnections() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur > math.MaxInt32 {
		return l.Connections
	}
	return max(1, min(l.Connections, int(files.Cur)-l.ReservedFiles))
}

// passes reports whether an error of accept is about the moment, not about the
// listener: out of descriptors or memory, a client that left the queue, or an
// error of its network, which accept(2) passes on.
func passes(err error) bool {
	for _, passing := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR,
		syscall.ECONNRESET, syscall.EPERM, syscall.EPROTO, syscall.ENETDOWN, syscall.ENETUNREACH,
		syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENOPROTOOPT, syscall.ETIMEDOUT,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// source is the unit by which strangers are counted: an IPv4 address or the /64
// of an IPv6 one, which costs its owner nothing to walk through.
func source(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits) // an invalid address shares the zero prefix
	return prefix
}

// rate counts events in windows of 10 s. The zero value is ready. It is not safe
// for concurrent use.
type rate struct {
	since time.Time
	n     int
}

// hit counts an event and returns how many the current window has.
func (r *rate) hit(now time.Time) int {
	if now.Sub(r.since) >= 10*time.Second {
		r.since, r.n = now, 0
	}
	r.n++
	return r.n
}

// tally counts connections by principal.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func newTally() *tally { return &tally{n: make(map[string]int)} }

func (t *tally) take(name string, limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n[name] >= limit {
		return false
	}
	t.n[name]++
	return true
}

func (t *tally) release(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n[name]--; t.n[name] == 0 {
		delete(t.n, name)
	}
}
