package upstream

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// maxDials is how many connections to one builder are set up at the same time.
// An sshd drops some of those that have not logged in from the tenth on.
const maxDials = 4

// builder is what the pool has of one builder. When the way to reach it changes,
// another takes its place.
type builder struct {
	pool   *Pool
	target *target
	log    *slog.Logger

	// reporting makes the calls of OnState and OnLoad come one after the other. Order of
	// locks: Pool.mu, reporting, mu.
	reporting      sync.Mutex
	reportedDown   bool   // guarded by reporting, as is:
	reportedReason string // "" if it was up

	inventory inventory
	rest      *rest

	mu       sync.Mutex // guards what follows
	maxJobs  int
	conns    []*conn
	channels int // most per connection; falls to what the builder allows
	dials    int // under way
	waiting  int // callers of reserve that wait
	// dialsFailed counts, so that who waits sees that one failed meanwhile.
	dialsFailed int
	dialErr     error
	sockets     int       // sessions at a socket, which need no connection
	idle        []*daemon // the latest last
	warming     bool      // a session for the next user is being opened
	programs    programs
	health      health
	loadWish    loadWish
	load        loadProbe
	retired     bool
	changed     chan struct{} // closed when something changed that somebody may wait for
}

// newBuilder makes a builder in the place of old, which may be nil.
func newBuilder(p *Pool, t *target, old *builder) *builder {
	b := &builder{
		pool: p, target: t, log: p.opts.Log.With("builder", t.name),
		maxJobs: t.maxJobs, loadWish: t.load, channels: p.opts.Channels, programs: t.programs(), changed: make(chan struct{}), rest: newRest(),
	}
	t.traffic = &traffic{}
	if old != nil {
		b.rest, t.traffic = old.rest, old.target.traffic
		b.load.paused = b.rest.spared()
		b.reportedDown = old.silence() // the new way is worth a try at once
	}
	return b
}

// silence makes a builder report nothing from now on, and returns what it
// reported last.
func (b *builder) silence() (reportedDown bool) {
	b.reporting.Lock()
	defer b.reporting.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retired = true
	return b.reportedDown
}

func (b *builder) setMaxJobs(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.maxJobs = n
	b.wake()
}

// maxSessions bounds the sessions on the builder: those that build, as many that
// still hand over their outputs, and some to spare, for what is found there and for
// uploads that are fed ahead; and the probe of its load. The caller holds mu.
func (b *builder) maxSessions() int {
	n := 2*b.maxJobs + 6
	if b.load.cancel != nil {
		n++
	}
	return n
}

// wake makes everybody who waits look again. The caller holds mu.
func (b *builder) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// errIdle says that a session became idle while a place for another was waited
// for.
var errIdle = errors.New("a session waits idle")

// reserve returns a connection with a place for one more channel, which is then
// the caller's. It dials if there is none, and waits if there may be no more.
// With orIdle the error is errIdle if there is an idle session meanwhile.
func (b *builder) reserve(ctx context.Context, orIdle bool) (*conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	failed := b.dialsFailed
	for {
		switch c := b.roomiest(); {
		case b.retired:
			return nil, b.target.faultf(Unreachable, "", "%w any more", errUnknown)
		case c != nil:
			c.take()
			return c, nil
		case orIdle && b.latestIdle(settingsOf(ctx)) != nil:
			return nil, errIdle
		case b.dialsFailed != failed:
			return nil, b.dialErr
		}
		if err := b.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// roomiest returns the connection with the most channels that takes one more, so
// that the others can run empty. The caller holds mu.
func (b *builder) roomiest() *conn {
	var best *conn
	for _, c := range b.conns {
		if !c.retired && !c.silent() && c.channels < min(c.limit, b.channels) && (best == nil || c.channels > best.channels) {
			best = c
		}
	}
	return best
}

// wait waits for a change, with a connection under way if one may help. The
// caller holds mu, which is not held while waiting.
func (b *builder) wait(ctx context.Context) error {
	b.waiting++
	defer func() { b.waiting-- }()
	if b.mayDial() {
		b.dials++
		b.pool.running.Go(b.dial)
	} else if b.dials == 0 {
		b.endStranger(settingsOf(ctx))
	}
	return b.awaitChange(ctx)
}

// awaitChange waits for a change. The caller holds mu, which is not held while
// waiting.
func (b *builder) awaitChange(ctx context.Context) error {
	changed := b.changed
	b.mu.Unlock()
	defer b.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mayDial reports whether one more connection is needed and allowed. The caller
// holds mu.
func (b *builder) mayDial() bool {
	taking := 0
	for _, c := range b.conns {
		if !c.retired && !c.silent() {
			taking++
		}
	}
	most := (b.maxSessions() + b.channels - 1) / b.channels
	return b.waiting > b.dials*b.channels && b.dials < maxDials && taking+b.dials < most
}

// dial sets up one connection for whoever needs it.
func (b *builder) dial() {
	l, err := b.dialPatiently()
	var c *conn
	if err == nil {
		c = newConn(b, l)
	}
	b.mu.Lock()
	b.dials--
	if err != nil {
		b.dialsFailed++
		b.target.traffic.dialsFailed.Add(1)
		b.dialErr = err
	}
	retired := b.retired
	if c != nil && !retired && !isClosed(c.ended) {
		c.limit = b.channels
		b.conns = append(b.conns, c)
		b.setUnused(c)
	}
	b.wake()
	b.mu.Unlock()
	if c != nil && retired {
		c.abort(errUnused)
	}
}

// connected reports whether there is a connection that works.
func (b *builder) connected() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.conns, func(c *conn) bool { return !c.silent() })
}

// dialPatiently tries several times as long as there are other connections: an
// sshd with many logins at a time drops some of them, which says nothing about
// the builder.
func (b *builder) dialPatiently() (*link, error) {
	for try := 0; ; try++ {
		l, err := b.pool.dial(b.pool.ctx, b.target)
		if err == nil || !b.connected() || try == 2 {
			return l, err
		}
		select {
		case <-time.After(b.pool.opts.BackOffMin / 2 << try):
		case <-b.pool.ctx.Done():
			return nil, err
		}
	}
}

// take takes a place for a channel. The caller holds builder.mu.
func (c *conn) take() {
	c.channels++
	if c.unused != nil {
		c.unused.Stop()
		c.unused = nil
	}
}

// giveBack frees the place of a channel that is closed, or was never opened.
func (b *builder) giveBack(c *conn) {
	b.mu.Lock()
	c.channels--
	c.retired = c.retired || b.rest.spared()
	closeNow := c.retired && c.channels == 0
	if c.channels == 0 && !closeNow {
		b.setUnused(c)
	}
	b.wake()
	b.mu.Unlock()
	if closeNow {
		c.abort(errUnused)
	}
}

// setUnused closes a connection some time after its last channel. The caller
// holds mu.
func (b *builder) setUnused(c *conn) {
	c.unused = time.AfterFunc(b.pool.opts.UnusedConnection, func() {
		b.mu.Lock()
		empty := c.channels == 0
		c.retired = c.retired || empty
		b.mu.Unlock()
		if empty {
			c.abort(errUnused)
		}
	})
}

// refused remembers that the builder allows fewer channels per connection than
// it was asked for. It gives the place back and reports whether others are on
// the connection: if not, the builder allows none at all.
func (b *builder) refused(c *conn) bool {
	b.giveBack(c)
	b.mu.Lock()
	defer b.mu.Unlock()
	// With several refused at the same time each leaves one place less, so that
	// the last one leaves just those that were not refused.
	c.limit = min(c.limit, max(c.channels, 1))
	others := c.channels > 0
	if others && c.limit < b.channels {
		b.log.Info("builder allows fewer sessions per connection", "sessions", c.limit)
		b.channels = c.limit
		b.makeRoom()
	}
	return others
}

// makeRoom ends the probe of the load if it has the one channel that a connection
// may have. The caller holds mu.
func (b *builder) makeRoom() {
	if b.channels < 2 && b.load.cancel != nil {
		b.stopLoad()
		b.load.err = errOneSession
		b.loadAfter(loadRetry)
		b.pool.running.Go(func() { b.loadUnknown(b.pool.ctx, errOneSession) })
	}
}

// connEnded forgets a connection.
func (b *builder) connEnded(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.unused != nil {
		c.unused.Stop()
	}
	c.retired = true
	b.conns = slices.DeleteFunc(b.conns, func(other *conn) bool { return other == c })
	b.wake()
}

// retire ends what is idle and lets the rest come to its end.
func (b *builder) retire() {
	b.mu.Lock()
	b.retired = true
	b.health.stopRetry()
	if b.inventory.next != nil {
		b.inventory.next.Stop()
	}
	b.stopLoad()
	conns, idle := slices.Clone(b.conns), b.idle
	b.idle = nil
	b.wake()
	b.mu.Unlock()
	for _, d := range idle {
		d.process.Close()
	}
	for _, c := range conns {
		c.retire()
	}
}
