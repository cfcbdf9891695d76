package upstream

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"nixbastion/internal/nix"
)

const (
	// heedTimeout is how long the beginning of a build is waited for since it was asked
	// for, and its silence since it was given up. After that its session is ended at
	// whatever moment.
	heedTimeout = time.Second
	// heedPause is for how long a daemon must have been silent to be taken for one
	// that only waits for the build.
	heedPause = 50 * time.Millisecond
)

// giveUp puts off the end of a build's context until the builder's daemon heeds it.
//
// A daemon that sees its client hang up interrupts itself, and there are two moments
// in which that comes to nothing and leaves a build that runs on, with its locks and
// without anybody's knowing (seen with Nix 2.34.8). When it has just started the
// process, which has no process group of its own yet: the group is killed, which does
// not exist, and the process is waited for. And while it is at work on a line of the
// log: it looks for interrupts before it waits for the next line, and not in between.
// Clients that hang up because of what they have just read are always there at that
// moment. So a build has begun, which daemons tell when its process has its group, and
// is silent, before its session is ended; and one that is never silent wakes its daemon
// with every line.
type giveUp struct {
	given context.Context // ends when the build is given up
	log   nix.Logger      // gets nothing any more after that
	// announced says that the activity of the build comes from us.
	announced bool
	asked     time.Time
	begun     chan struct{} // closed by once when the build has begun
	once      sync.Once
	heard     atomic.Int64 // when something was said last, in ns since 1970
}

// heeding returns the context and the logger for an operation that builds. Call stop
// when it has returned.
func heeding(ctx context.Context, log nix.Logger, announced bool) (_ context.Context, _ nix.Logger, stop func()) {
	if ctx.Err() != nil {
		return ctx, log, func() {}
	}
	g := &giveUp{given: ctx, log: log, announced: announced, asked: time.Now(), begun: make(chan struct{})}
	later, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	off := context.AfterFunc(ctx, func() {
		g.await(later)
		cancel(context.Cause(ctx))
	})
	return later, g, func() {
		off()
		cancel(nil)
	}
}

// await returns when the build can be given up, or was answered.
func (g *giveUp) await(answered context.Context) {
	limit, cancel := context.WithTimeout(answered, heedTimeout)
	defer cancel()
	select {
	case <-g.begun:
	case <-time.After(time.Until(g.asked.Add(heedTimeout))):
	case <-limit.Done():
	}
	for limit.Err() == nil {
		left := heedPause - time.Since(time.Unix(0, g.heard.Load()))
		if left <= 0 || !pause(limit, left) {
			return
		}
	}
}

// Log implements [nix.Logger].
func (g *giveUp) Log(m nix.LogMessage) {
	g.heard.Store(time.Now().UnixNano())
	if g.begins(m) {
		g.once.Do(func() { close(g.begun) })
	}
	if g.given.Err() == nil {
		g.log.Log(m)
	}
}

// begins reports whether a message is a sign of a build that runs.
func (g *giveUp) begins(m nix.LogMessage) bool {
	switch m.Kind {
	case nix.LogStartActivity:
		return m.Type == nix.ActivityBuild && !g.announced
	case nix.LogResult:
		return m.Type == nix.ResultBuildLogLine
	}
	return false
}
