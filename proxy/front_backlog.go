package proxy

import (
	"context"
	"runtime"
	"time"
)

const (
	// backlogPause is how long at most one connection of the listen queue waits for
	// others to log in, and backlogTime for how long connections do so.
	backlogPause = 200 * time.Millisecond
	backlogTime  = 10 * time.Second
	// queueEmpty is after how long a wait for a connection tells that none was there.
	queueEmpty = 5 * time.Millisecond
)

// backlog paces what waited in the listen queue while nobody accepted, during a restart:
// honest clients, all at once, of whom there may be more than may log in at a time. It
// ends with the first connection that had to be waited for, or soon after the start:
// later, who comes in crowds pushes out the slow (front_admission.go).
type backlog struct {
	f    *Front
	ends time.Time
	over bool
}

func (f *Front) newBacklog() *backlog { return &backlog{f: f, ends: time.Now().Add(backlogTime)} }

// pace waits for a moment while many log in.
func (b *backlog) pace(ctx context.Context) {
	if b.over {
		return
	}
	runtime.Gosched() // who was accepted just now counts too
	for end := time.Now().Add(backlogPause); b.f.room.half() && ctx.Err() == nil && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// accepted is told how long a connection was waited for.
func (b *backlog) accepted(after time.Duration) {
	b.over = b.over || after > queueEmpty || time.Now().After(b.ends)
}

// half reports whether half of the room is taken.
func (r *waitingRoom) half() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting) >= r.limits.Pending/2
}
