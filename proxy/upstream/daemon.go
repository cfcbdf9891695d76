package upstream

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"nixbastion/internal/nix"
)

// daemon is a session with a builder's daemon. It has one user after the other,
// each of whom holds it as a [Session].
type daemon struct {
	builder  *builder
	client   client
	process  process
	command  string // what was executed, or the socket's address
	settings Settings
	greeting
	opened time.Time
	// roots is about how many paths the session keeps from garbage collection;
	// its user counts.
	roots int
	// waited says that it was idle. Guarded by builder.mu, and by its user's being
	// the only one.
	waited bool
	// expiry ends the session when it was idle for too long. Guarded by
	// builder.mu.
	expiry *time.Timer
}

// get returns an idle session or a new one.
func (b *builder) get(ctx context.Context) (*daemon, error) {
	d, err := b.takeIdle(ctx), error(nil)
	for d == nil {
		if d, err = b.getNew(ctx); err == nil {
			break
		}
		if !errors.Is(err, errIdle) {
			return nil, err
		}
		d = b.takeIdle(ctx)
	}
	b.warm(d.settings)
	return d, nil
}

// getNew returns a new session unless the builder is left alone, or errIdle.
func (b *builder) getNew(ctx context.Context) (*daemon, error) {
	b.mu.Lock()
	err := cmp.Or(b.asleep(), b.health.refusal(time.Now()))
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d, err := b.open(ctx, true)
	b.noteOutcome(err)
	return d, err
}

// open opens a session in the way that leads to the builder. With orIdle the
// error is errIdle if it would have to wait and there is an idle session.
func (b *builder) open(ctx context.Context, orIdle bool) (*daemon, error) {
	if b.target.socket != "" {
		return b.openSocket(ctx, orIdle)
	}
	return b.openDaemon(ctx, func(ctx context.Context) (*conn, error) { return b.reserve(ctx, orIdle) })
}

// errNoProgram says that a command does not exist on the builder.
var errNoProgram = errors.New("command not found")

// openDaemon opens a session on a connection that reserve returns. It asks again
// where another try can help: on a connection with room, by another command, and
// once if a connection turns out to be dead.
func (b *builder) openDaemon(ctx context.Context, reserve func(context.Context) (*conn, error)) (*daemon, error) {
	var missing error // what the first command that does not exist gave
	for lost := false; ; {
		c, err := reserve(ctx)
		if err != nil {
			return nil, err
		}
		if !c.proven(ctx) {
			b.giveBack(c)
			continue
		}
		command, tried := b.command()
		d, err := b.startDaemon(ctx, c, settingsOf(ctx).onCommand(command))
		var fault *Error
		switch {
		case err == nil:
			return d, nil
		case errors.Is(err, errRefused) && b.refused(c):
		case errors.Is(err, errRefused):
			return nil, b.target.faultf(Protocol, "see MaxSessions in its sshd_config", "allows no sessions: %w", err)
		case errors.Is(err, errNoProgram):
			if missing == nil {
				missing = err
			}
			if !b.programMissing(tried) {
				return nil, missing
			}
		case errors.As(err, &fault) && fault.Kind == Lost && !lost:
			lost = true
		default:
			return nil, err
		}
	}
}

// command returns the command to try, and its number.
func (b *builder) command() (string, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.programs.commands[b.programs.current], b.programs.current
}

func (b *builder) programMissing(tried int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.programs.missing(tried)
}

// startDaemon opens a session on a connection of which the caller has a place;
// it is given back unless the error is errRefused. The work goes on by itself
// when the time is up, since nothing interrupts the ssh library's waiting, and
// then cleans up behind itself.
func (b *builder) startDaemon(ctx context.Context, c *conn, command string) (*daemon, error) {
	type outcome struct {
		d   *daemon
		err error
	}
	limited, cancel := context.WithTimeout(ctx, b.pool.opts.SessionTimeout)
	defer cancel()
	before := c.link.net.received.Load()
	done := make(chan outcome)
	b.pool.running.Go(func() {
		d, err := b.shakeHands(limited, c, command)
		select {
		case done <- outcome{d, err}:
		case <-limited.Done():
			b.discard(d, err, c)
		}
	})
	select {
	case o := <-done:
		return o.d, o.err
	case <-limited.Done():
	}
	c.retire()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case c.link.net.received.Load() == before:
		return nil, b.target.faultf(Lost, "", "no answer from %s within %s", b.target.address, b.pool.opts.SessionTimeout)
	}
	return nil, b.target.faultf(Unreachable, "", "no answer from '%s' within %s", command, b.pool.opts.SessionTimeout)
}

// discard ends what came too late.
func (b *builder) discard(d *daemon, err error, c *conn) {
	if d != nil {
		d.process.Close()
	}
	if errors.Is(err, errRefused) {
		b.giveBack(c)
	}
}

// shakeHands starts the program and greets the daemon.
func (b *builder) shakeHands(ctx context.Context, c *conn, command string) (*daemon, error) {
	p, err := c.start(command)
	if err != nil {
		return nil, err
	}
	return b.greet(ctx, p, command)
}

// greet makes a session of a process, which it ends otherwise.
func (b *builder) greet(ctx context.Context, p process, command string) (*daemon, error) {
	client, greeting, err := b.target.shakeHands(ctx, p)
	if err != nil {
		return nil, b.explain(p, command, err)
	}
	p.greeted()
	if greeting.trust == nix.NotTrusted {
		p.Close()
		return nil, b.target.untrusted()
	}
	return &daemon{builder: b, client: client, process: p, command: command, settings: settingsOf(ctx), greeting: greeting, opened: time.Now()}, nil
}

// explain tells why there is no daemon at the other end of a process.
func (b *builder) explain(p process, command string, err error) error {
	p.Close()
	said := p.remark()
	if lost := p.lost(); lost != nil {
		return b.target.fault(Lost, lost)
	}
	fault := b.target.daemonFault(command, err, said)
	if said.status.known && said.status.code == notFound {
		return errors.Join(errNoProgram, fault)
	}
	return fault
}

// warm opens a session for the next user, unless one waits already: he probably
// wants the settings that the present one does. It is worth some hundred
// milliseconds to him, and hidden behind the present one's build.
func (b *builder) warm(settings Settings) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retired || b.rest.spared() || b.warming || b.latestIdle(settings) != nil || b.inUse() >= b.maxSessions() {
		return
	}
	b.warming = true
	b.pool.running.Go(func() {
		d, err := b.open(withSettings(b.pool.ctx, settings), false)
		b.mu.Lock()
		b.warming = false
		b.mu.Unlock()
		if err != nil {
			b.log.Debug("no session in advance", "error", err)
			return
		}
		b.park(d)
	})
}

// inUse counts the sessions, and what comes and goes in their places. The caller
// holds mu.
func (b *builder) inUse() int {
	n := b.sockets
	for _, c := range b.conns {
		n += c.channels
	}
	return n
}

// park keeps a session for its next user, or ends it if it has no future.
func (b *builder) park(d *daemon) {
	if !d.reusable() {
		d.process.Close()
		return
	}
	d.process.watch(func() { b.spoiled(d) })
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retired || b.rest.spared() || d.process.spoiled() || len(b.idle) >= max(b.maxJobs, 1) && !b.endStranger(d.settings) {
		d.process.Close()
		return
	}
	d.waited = true
	b.idle = append(b.idle, d)
	b.wake()
	d.expiry = time.AfterFunc(b.pool.opts.IdleSession, func() { b.expire(d) })
}

// reusable reports whether another build may have the session.
func (d *daemon) reusable() bool {
	opts := &d.builder.pool.opts
	return d.client.Reusable() && !d.process.over() && d.roots < opts.TempRoots && time.Since(d.opened) < opts.SessionAge
}

// takeIdle returns the session that was used last, whose daemon is warmest, unless
// its builder does not answer.
func (b *builder) takeIdle(ctx context.Context) *daemon {
	for {
		b.mu.Lock()
		d := b.latestIdle(settingsOf(ctx))
		b.mu.Unlock()
		switch {
		case d == nil:
			return nil
		case !d.process.proven(ctx) || !b.claim(d):
		case d.reusable() && !d.process.spoiled():
			return d
		default:
			d.process.Close()
		}
	}
}

// latestIdle returns the session that was used last of those that may be taken for
// some settings, or nil. The caller holds mu.
func (b *builder) latestIdle(settings Settings) *daemon {
	for _, d := range slices.Backward(b.idle) {
		if d.settings == settings && !d.process.silent() {
			return d
		}
	}
	return nil
}

// claim takes a session that is still idle.
func (b *builder) claim(d *daemon) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.removeIdle(d)
}

// removeIdle reports whether the session was idle. The caller holds mu.
func (b *builder) removeIdle(d *daemon) bool {
	i := slices.Index(b.idle, d)
	if i < 0 {
		return false
	}
	b.idle = slices.Delete(b.idle, i, i+1)
	d.expiry.Stop()
	return true
}

func (b *builder) expire(d *daemon) { b.endIdle(d) }

// spoiled ends an idle session on which something arrived.
func (b *builder) spoiled(d *daemon) {
	if b.endIdle(d) && !d.process.over() {
		b.log.Debug("idle session ended or spoke out of turn")
	}
}

func (b *builder) endIdle(d *daemon) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.removeIdle(d) {
		return false
	}
	d.process.Close()
	return true
}
