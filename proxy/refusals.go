package proxy

import (
	"context"
	"log/slog"
	"sync"
	"time"

	tokens "golang.org/x/time/rate"
)

// Refusal is a reason for which somebody is turned away, or made to wait.
type Refusal string

// The reasons. Their names are for numbers and logs.
const (
	RefusedStartups   Refusal = "max_startups"           // too many connections that have not logged in
	RefusedPenalty    Refusal = "per_source_penalties"   // the source is kept out
	RefusedHeader     Refusal = "proxy_protocol"         // no valid PROXY header where there must be one
	RefusedHandshake  Refusal = "handshake"              // no login was tried
	RefusedLogin      Refusal = "login"                  // the keys were refused
	RefusedCount      Refusal = "max_connections"        // the principal has too many connections
	RefusedRate       Refusal = "connections_per_minute" // the principal opens too many
	RefusedSession    Refusal = "session"                // a session or a jump
	RefusedMemory     Refusal = "session_memory"         // a session, for want of memory
	DelayedBuild      Refusal = "builds_per_minute"      // a build has to wait
	DelayedConnection Refusal = "files"                  // connections wait to be accepted
	PenalisedSource   Refusal = "penalised"              // a source is kept out from now on
)

const (
	// refusalLines of each reason are logged at once, and then one for each
	// refusalPause: whoever is refused could fill the disk otherwise.
	refusalLines = 20
	refusalPause = time.Second
)

// refusals counts who is turned away and why, and logs it at a bounded rate.
type refusals struct {
	log *slog.Logger

	mu sync.Mutex // guards what follows
	by map[Refusal]*refusalCount
}

type refusalCount struct {
	n        uint64
	unlogged uint64 // since the last line
	lines    *tokens.Limiter
}

func newRefusals(log *slog.Logger) *refusals {
	return &refusals{log: log, by: map[Refusal]*refusalCount{}}
}

// counts are the numbers since the start, of reasons that were there.
func (r *refusals) counts() map[Refusal]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[Refusal]uint64, len(r.by))
	for why, c := range r.by {
		all[why] = c.n
	}
	return all
}

// byWord is counts for who does not know the reasons.
func (r *refusals) byWord() map[string]uint64 {
	all := map[string]uint64{}
	for why, n := range r.counts() {
		all[string(why)] = n
	}
	return all
}

// count counts one whose line somebody else writes.
func (r *refusals) count(why Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of(why).n++
}

// note counts one and logs it, if not too many were logged lately; then the next line
// says how many were not.
func (r *refusals) note(why Refusal, level slog.Level, msg string, args ...any) {
	unlogged, ok := r.mayLog(why)
	if !ok {
		return
	}
	if unlogged > 0 {
		args = append(args, "unlogged", unlogged)
	}
	r.log.Log(context.Background(), level, msg, args...)
}

func (r *refusals) mayLog(why Refusal) (unlogged uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.of(why)
	c.n++
	if !c.lines.Allow() {
		c.unlogged++
		return 0, false
	}
	unlogged, c.unlogged = c.unlogged, 0
	return unlogged, true
}

// of is called with the lock held.
func (r *refusals) of(why Refusal) *refusalCount {
	c := r.by[why]
	if c == nil {
		c = &refusalCount{lines: tokens.NewLimiter(tokens.Every(refusalPause), refusalLines)}
		r.by[why] = c
	}
	return c
}
