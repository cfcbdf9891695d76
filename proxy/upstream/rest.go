package upstream

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// errAsleep says that a builder must be woken before it gives sessions.
var errAsleep = errors.New("is asleep")

// rest is what a builder is spared, and whether somebody uses it. It belongs to the
// builder whatever way leads there.
type rest struct {
	mu sync.Mutex // guards what follows; comes after a builder's
	// leaving: nothing is kept open there, and nothing asked by ourselves.
	leaving bool
	// asleep: no session is given out either.
	asleep bool
	users  int       // sessions that were given out, or are about to be
	used   time.Time // when the last of them ended
}

func newRest() *rest { return &rest{used: time.Now()} }

// spared reports whether the builder is left alone by all that nobody asked for.
func (r *rest) spared() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaving || r.asleep
}

// enter counts a user, unless the builder is asleep.
func (r *rest) enter() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asleep {
		return errAsleep
	}
	r.users++
	return nil
}

func (r *rest) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users--
	r.used = time.Now()
}

// fall makes the builder be asleep if it was without a user for so long.
func (r *rest) fall(idle time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users > 0 || time.Since(r.used) < idle {
		return false
	}
	r.asleep = true
	return true
}

func (r *rest) set(change func(*rest)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// SetLeaving says that a builder is to be used no more than is asked for: sessions
// are given out, and ended when their users are done, and connections are closed
// with the last one. It is neither listed nor tried again when it is down. False
// ends that. An unknown name is ignored.
func (p *Pool) SetLeaving(name string, leaving bool) {
	b, err := p.enter(name)
	if err != nil {
		return
	}
	defer p.running.Done()
	b.rest.set(func(r *rest) { r.leaving = leaving })
	b.settle()
}

// Idle is for how long a builder had no user; 0 if it has one, or is unknown. Users
// are those who got a session by Get.
func (p *Pool) Idle(name string) time.Duration {
	b, err := p.enter(name)
	if err != nil {
		return 0
	}
	defer p.running.Done()
	r := b.rest
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users > 0 {
		return 0
	}
	return time.Since(r.used)
}

// Sleep says that a builder is asleep which had no user for so long: it gives out no
// sessions, and nothing is asked of it, until Reach. It returns once all connections
// are closed, or closes them hard after Options.EndTimeout. False means that it has
// or had users, or is unknown, and nothing has changed.
func (p *Pool) Sleep(ctx context.Context, name string, idle time.Duration) bool {
	b, err := p.enter(name)
	if err != nil {
		return false
	}
	defer p.running.Done()
	if !b.rest.fall(idle) {
		return false
	}
	b.settle()
	ctx, cancel := context.WithTimeout(ctx, p.opts.EndTimeout)
	defer cancel()
	b.disconnect(ctx)
	return true
}

// Reach tries to get a session with a builder, also if it is asleep or was down a
// moment ago, and keeps it for the next user. If that goes well the builder is
// awake and up. Errors are those of Get, and do not make it down.
func (p *Pool) Reach(ctx context.Context, name string) error {
	b, err := p.enter(name)
	if err != nil {
		return err
	}
	defer p.running.Done()
	d, err := b.open(ctx, false)
	if err != nil {
		return err
	}
	b.awake()
	b.noteOutcome(nil)
	b.settle()
	b.park(d)
	return nil
}

// Wake says that a builder is not asleep, whether it can be reached or not. An
// unknown name is ignored.
func (p *Pool) Wake(name string) {
	b, err := p.enter(name)
	if err != nil {
		return
	}
	defer p.running.Done()
	b.awake()
	b.settle()
}

// Look finds out whether a builder is up, as Get does, which does not count as use.
func (p *Pool) Look(ctx context.Context, name string) error {
	b, err := p.enter(name)
	if err != nil {
		return err
	}
	defer p.running.Done()
	d, err := b.get(ctx)
	if err != nil {
		return err
	}
	b.park(d)
	return nil
}

// Asleep reports whether a builder gives no sessions because it is asleep.
func (p *Pool) Asleep(name string) bool {
	p.mu.Lock()
	b := p.builders[name]
	p.mu.Unlock()
	if b == nil {
		return false
	}
	return b.asleep() != nil
}

func (b *builder) awake() {
	b.rest.set(func(r *rest) { r.asleep, r.used = false, time.Now() })
}

// asleep is the answer of a builder that must be woken first, else nil.
func (b *builder) asleep() error {
	b.rest.mu.Lock()
	defer b.rest.mu.Unlock()
	if b.rest.asleep {
		return b.target.fault(Unreachable, errAsleep)
	}
	return nil
}

// settle brings what is kept open and what is done in the background in line with
// what the builder is spared.
func (b *builder) settle() {
	spared := b.rest.spared()
	b.pauseLoad(spared)
	if spared {
		b.closeUnused()
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retired {
		return
	}
	if b.health.down {
		b.health.stopRetry()
		b.health.retry = time.AfterFunc(0, func() { b.pool.spawn(b.recover) })
	}
	if b.inventory.next != nil {
		b.listAfter(0)
	}
}

// closeUnused ends idle sessions and the connections that nobody uses.
func (b *builder) closeUnused() {
	b.mu.Lock()
	idle := b.idle
	b.idle = nil
	var unused []*conn
	for _, c := range b.conns {
		if c.channels == 0 {
			c.retired = true
			unused = append(unused, c)
		}
	}
	b.wake()
	b.mu.Unlock()
	for _, d := range idle {
		d.process.Close()
	}
	for _, c := range unused {
		c.abort(errUnused)
	}
}

// disconnect waits until nothing is open, and closes connections hard when ctx ends.
func (b *builder) disconnect(ctx context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for (len(b.conns) > 0 || b.sockets > 0) && ctx.Err() == nil {
		_ = b.awaitChange(ctx) // its error is that of ctx
	}
	for _, c := range slices.Clone(b.conns) {
		c.abort(errAsleep)
	}
}

// fellAsleep reports whether a builder that cannot be reached is asleep, as its
// owner says, and leaves it alone then. One with a connection that works is not.
func (b *builder) fellAsleep() bool {
	b.mu.Lock()
	retired := b.retired
	b.mu.Unlock()
	if retired || b.connected() || !b.pool.opts.Sleeps(b.target.name) {
		return false
	}
	b.rest.set(func(r *rest) { r.asleep = true })
	b.forgetHealth()
	b.settle()
	return true
}

// forgetHealth makes the builder neither up nor down, and reports nothing of it.
func (b *builder) forgetHealth() {
	b.reporting.Lock()
	defer b.reporting.Unlock()
	b.reportedDown, b.reportedReason = false, ""
	b.mu.Lock()
	defer b.mu.Unlock()
	b.health.stopRetry()
	b.health = health{}
}
