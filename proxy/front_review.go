package proxy

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// When the policy changes, those who are in already are looked at again: a connection
// that would not be let in any more, or that runs what its key may not run any more,
// is dismissed. Its commands hear of it first, so that they can tell their
// clients why; then it is closed.

const (
	// dismissPatience is how long a dismissed client has to be told why, and to leave by
	// itself, before its connection is closed. With what the look at everybody takes
	// it stays below a second. What its commands have not told by themselves after
	// tellPatience, as they stand in the middle of an upload, is told for them.
	dismissPatience = 500 * time.Millisecond
	tellPatience    = 300 * time.Millisecond
	// finishInterval is how often a connection that is to finish its work is looked at,
	// finishQuiet how long it may then do nothing, and finishLimit how long it may live
	// once its work is done: its client still fetches what came of it.
	finishInterval = 2 * time.Second
	finishQuiet    = 10 * time.Second
	finishLimit    = 10 * time.Minute
)

// Login is a connection that somebody has logged in on, and what it runs.
type Login struct {
	// Identity is who logged in, and what that was worth then.
	*Identity
	// Key is what they have proved to own, and Since when that was.
	Key   ssh.PublicKey
	Since time.Time
	// Running are the identities of its sessions: each has what the key was worth
	// when it began.
	Running []*Identity
}

// Dismissal says why a connection has to end.
type Dismissal struct {
	// Reason is told to the client, and ends its commands as the cause of their
	// contexts.
	Reason error
	// Finish lets what commands have counted in [Exec.Working] come to its end before.
	Finish bool
}

// Reviewed counts what a review came to.
type Reviewed struct {
	// Dismissed connections end within a second, Finishing ones when their work is done.
	Dismissed, Finishing int
	// Jumps were ended on connections that stay.
	Jumps int
}

// Review looks at all connections again, by [FrontOptions.Review] and
// [FrontOptions.ReviewJump]. It is called when the policy has changed, and does not
// wait for those who have to go.
func (f *Front) Review() Reviewed {
	// Counted first: who comes in meanwhile by the old policy sees it, and is looked at
	// again.
	f.reviews.Add(1)
	f.mu.Lock()
	all := slices.Collect(maps.Keys(f.conns))
	f.mu.Unlock()
	var r Reviewed
	for _, c := range all {
		c.review(&r)
	}
	return r
}

// reviewSince looks at a connection again if others were since a count of reviews.
func (c *frontConn) reviewSince(seen int64) {
	if c.front.reviews.Load() != seen {
		c.review(&Reviewed{})
	}
}

// review looks at one connection again.
func (c *frontConn) review(r *Reviewed) {
	login, jumps := c.standing()
	if login == nil || c.front.review == nil {
		return
	}
	if why := c.front.review(login); why != nil {
		c.dismiss(why, r)
		return
	}
	c.stay()
	for _, j := range jumps {
		if err := c.front.reviewJump(login, j.target); err != nil {
			j.end("the policy has changed: " + err.Error())
			r.Jumps++
		}
	}
}

// standing is nil before the login and after the end.
func (c *frontConn) standing() (*Login, []*jump) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login == nil || c.ended {
		return nil, nil
	}
	login := *c.login
	for _, s := range c.serving {
		login.Running = append(login.Running, s.who)
	}
	return &login, slices.Clone(c.carrying)
}

// enrol notes what somebody runs on a connection, and that it has ended once the function
// returned is called. What was allowed by a policy that is the old one by now, as
// the count of reviews from before tells, is looked at again.
func enrol[T comparable](c *frontConn, list *[]T, item T, seen int64) (leave func()) {
	c.mu.Lock()
	*list = append(*list, item)
	c.mu.Unlock()
	c.reviewSince(seen)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		i := slices.Index(*list, item)
		*list = slices.Delete(*list, i, i+1)
	}
}

// dismiss ends a connection, if that is news.
func (c *frontConn) dismiss(why *Dismissal, r *Reviewed) {
	finish := why.Finish && c.working.Load() > 0
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.leaving.Load()
	switch {
	case c.ended, before != nil && (!before.Finish || why.Finish):
		return // it goes already
	case finish:
		r.Finishing++
		c.leaving.Store(why)
		if before == nil {
			c.finish(&finishing{})
		}
	default:
		r.Dismissed++
		c.leaving.Store(&Dismissal{Reason: why.Reason})
		c.part(why.Reason)
	}
}

// part begins the end of a dismissed connection. The caller holds mu.
func (c *frontConn) part(reason error) {
	if c.why == "" {
		c.why = "dismissed: " + reason.Error()
	}
	c.stop()
	c.cancel(reason)
	if c.running == 0 && c.jumping == 0 { // nobody is there to be told
		c.goodbyeIn(0, c.Conn.Close)
		return
	}
	c.goodbyeIn(tellPatience, func() error { c.tell(reason); return nil })
}

// tell says why to the clients of all sessions that still run.
func (c *frontConn) tell(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	for _, s := range c.serving {
		c.sessions.Go(func() { // it waits for who does not read, until the connection is closed
			defer c.front.recovered("end of a session")
			s.farewell.Lock()
			defer s.farewell.Unlock()
			s.refuse(reason.Error(), 0)
		})
	}
	c.goodbyeIn(dismissPatience-tellPatience, c.Conn.Close)
}

// goodbyeIn has the next step of a dismissal done in a while. The caller holds mu.
func (c *frontConn) goodbyeIn(wait time.Duration, step func() error) {
	if c.goodbye != nil {
		c.goodbye.Stop()
	}
	c.goodbye = time.AfterFunc(wait, func() { step() })
}

// stay lets a connection go on that was to finish: its key is let in again.
func (c *frontConn) stay() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.leaving.Load(); d != nil && d.Finish {
		c.leaving.Store(nil)
	}
}

// stop tells commands to come to their end, once. The caller holds mu.
func (c *frontConn) stop() {
	if !c.stopped {
		c.stopped = true
		close(c.stopping)
	}
}

// dismissed returns why the connection ends, or is to end, nil if it stays.
func (c *frontConn) dismissed() error {
	if d := c.leaving.Load(); d != nil {
		return d.Reason
	}
	return nil
}

// finishing is what was seen of a connection that is to finish its work.
type finishing struct {
	received    int64         // bytes, at the last look
	quiet, done time.Duration // for how long there was nothing, and no work
}

// finish ends the jumps of a connection and looks at it from time to time. The caller
// holds mu.
func (c *frontConn) finish(seen *finishing) {
	for _, j := range c.carrying {
		j.end("dismissed")
	}
	c.goodbyeIn(finishInterval, func() error { c.lookWhetherDone(seen); return nil })
}

func (c *frontConn) lookWhetherDone(seen *finishing) {
	defer c.front.recovered("end of a connection")
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.leaving.Load()
	if c.ended || d == nil || !d.Finish {
		return // it is gone, stays, or goes already
	}
	received := c.received.Load()
	switch {
	case c.working.Load() > 0:
		*seen = finishing{}
	case received != seen.received:
		seen.done, seen.quiet = seen.done+finishInterval, 0
	default:
		seen.done, seen.quiet = seen.done+finishInterval, seen.quiet+finishInterval
	}
	seen.received = received
	if seen.quiet < finishQuiet && seen.done < finishLimit {
		c.finish(seen)
		return
	}
	c.leaving.Store(&Dismissal{Reason: d.Reason})
	c.part(d.Reason)
}
