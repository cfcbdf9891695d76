package proxy

import (
	"context"
	"net"
	"time"
)

const (
	// backlogPause is how long at most one connection of the listen queue waits for
	// others to log in, and backlogTime for how long connections do so.
	backlogPause = time.Second
	backlogTime  = 10 * time.Second
)

// backlog paces what waited in the listen queue while nobody accepted, during a restart:
// honest clients, all at once, of whom there may be more than may log in at a time.
// Later, who comes in crowds pushes out the slow (front_admission.go).
type backlog struct {
	f    *Front
	left int // connections that waited
	ends time.Time
}

func (f *Front) newBacklog(l net.Listener) *backlog {
	return &backlog{f: f, left: queued(l), ends: time.Now().Add(backlogTime)}
}

// pace is called before each connection is accepted. It waits for a moment while many
// log in.
func (b *backlog) pace(ctx context.Context) {
	if b.left == 0 || time.Now().After(b.ends) {
		return
	}
	b.left--
	for end := time.Now().Add(backlogPause); b.f.many() && ctx.Err() == nil && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// many reports whether half of the room is taken, or will be.
func (f *Front) many() bool {
	return int(f.arriving.Load())+f.room.size() >= f.limits.Pending/2
}

// size is how many log in.
func (r *waitingRoom) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting)
}
