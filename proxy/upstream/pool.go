package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"nixbastion/policy"
)

// Options are the limits of a pool. The zero value of each means its default.
type Options struct {
	// Log takes what admins should know. Nil drops it.
	Log *slog.Logger
	// OnState is called when a builder goes down, with the reason for people, when
	// there is another reason, and when it is up again. A builder counts as up at first. Calls for one
	// builder come one at a time; they must not call the pool. Nil is allowed.
	OnState func(builder string, up bool, reason string)
	// OnHostKey is called when a builder goes down since it showed another host key
	// than is on file for it, or there is another reason of that kind. As OnState.
	OnHostKey func(builder, reason string)
	// Sleeps is asked when a builder cannot be reached: true says that it is asleep,
	// which is no fault. It is not reported as down then, and left alone until Reach
	// or Wake. It must not call the pool. Nil says no.
	Sleeps func(builder string) bool
	// Dial opens network connections, and those to sockets (network "unix").
	// Default with keep-alive where there is a network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// ConnectTimeout is for a network connection. Default 5 s.
	ConnectTimeout time.Duration
	// HandshakeTimeout is for ssh's key exchange and login. Default 10 s.
	HandshakeTimeout time.Duration
	// SessionTimeout is for opening a channel, starting the remote program and
	// the daemon's handshake. Default 10 s.
	SessionTimeout time.Duration
	// EndTimeout is how long a program may take to end after its input ended; a
	// daemon deletes the build directory in that time. Default 10 s.
	EndTimeout time.Duration
	// KeepAlive is after how long a silent connection is asked for a sign of
	// life, and KeepAliveMisses how often in a row in vain before it is closed.
	// Defaults 15 s and 3.
	KeepAlive       time.Duration
	KeepAliveMisses int
	// ProofAfter is after how long without a byte a connection must prove itself
	// before it is used again, and ProofTimeout how long the builder may take to
	// answer. One that does not is left alone until it is heard again. Defaults 1 s
	// and 1 s.
	ProofAfter, ProofTimeout time.Duration

	// Channels is the most sessions on one connection. OpenSSH's sshd allows 10
	// by default. Default 8.
	Channels int
	// UnusedConnection is how long a connection without sessions is kept.
	// Default 5 min.
	UnusedConnection time.Duration
	// IdleSession is how long a session waits for its next user, and SessionAge
	// how old it may get: while it lives, what it touched cannot be collected as
	// garbage on the builder. Defaults 2 min and 30 min.
	IdleSession time.Duration
	SessionAge  time.Duration
	// TempRoots is from how many paths held on a session is not used again.
	// Default 10,000.
	TempRoots int

	// Inventory is after how long, about, a builder's store is listed again; see
	// [Pool.Lists]. Zero: no store is listed.
	Inventory time.Duration
	// InventoryPaths is the most paths that a store may have to be listed. Each
	// takes 20 bytes of memory. Default 2,097,152.
	InventoryPaths int

	// LoadEvery is how often a builder is asked how busy it is, where the policy says
	// nothing else; see [Pool.Load]. Zero: none is asked.
	LoadEvery time.Duration
	// OnLoad is called with each sample of a builder's load, or with why there is none
	// any more; it is [ErrLoadLate] while one is expected. As OnState otherwise.
	OnLoad func(builder string, load Load, err error)

	// BackOffMin is about how long a builder is left alone after its first
	// failure. Each further one doubles it, up to BackOffMax. Defaults 1 s and
	// 1 min.
	BackOffMin, BackOffMax time.Duration
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.OnState == nil {
		o.OnState = func(string, bool, string) {}
	}
	if o.OnHostKey == nil {
		o.OnHostKey = func(string, string) {}
	}
	if o.OnLoad == nil {
		o.OnLoad = func(string, Load, error) {}
	}
	if o.Sleeps == nil {
		o.Sleeps = func(string) bool { return false }
	}
	if o.Dial == nil {
		o.Dial = dialNet
	}
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, 5*time.Second)
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, 10*time.Second)
	o.SessionTimeout = cmp.Or(o.SessionTimeout, 10*time.Second)
	o.EndTimeout = cmp.Or(o.EndTimeout, 10*time.Second)
	o.KeepAlive = cmp.Or(o.KeepAlive, 15*time.Second)
	o.KeepAliveMisses = cmp.Or(o.KeepAliveMisses, 3)
	o.ProofAfter = cmp.Or(o.ProofAfter, time.Second)
	o.ProofTimeout = cmp.Or(o.ProofTimeout, time.Second)
	o.Channels = cmp.Or(o.Channels, 8)
	o.UnusedConnection = cmp.Or(o.UnusedConnection, 5*time.Minute)
	o.IdleSession = cmp.Or(o.IdleSession, 2*time.Minute)
	o.SessionAge = cmp.Or(o.SessionAge, 30*time.Minute)
	o.TempRoots = cmp.Or(o.TempRoots, 10_000)
	o.InventoryPaths = cmp.Or(o.InventoryPaths, 2<<20)
	o.BackOffMin = cmp.Or(o.BackOffMin, time.Second)
	o.BackOffMax = cmp.Or(o.BackOffMax, time.Minute)
	return o
}

// Pool keeps connections to all builders. Its methods may be called from any
// goroutine.
type Pool struct {
	opts Options
	// ctx ends with Close: what runs for nobody in particular runs under it.
	ctx  context.Context
	stop context.CancelFunc
	// running counts all goroutines of the pool and the calls into it.
	running sync.WaitGroup

	mu       sync.Mutex // guards what follows; comes before a builder's
	builders map[string]*builder
	open     map[aborter]bool // of removed builders, too
	closed   bool
}

// NewPool makes a pool without builders. Nothing is dialled before it is needed.
func NewPool(opts Options) *Pool {
	p := &Pool{opts: opts.withDefaults(), builders: make(map[string]*builder), open: make(map[aborter]bool)}
	p.ctx, p.stop = context.WithCancel(context.Background()) // the pool's own life
	return p
}

// Update makes the pool know exactly these builders. Sessions that are in use on
// a builder that was removed, or is now reached in another way, go on until
// their users end them.
func (p *Pool) Update(builders []policy.Builder) {
	targets := make([]*target, len(builders))
	for i := range builders {
		targets[i] = newTarget(&builders[i])
	}
	p.update(targets)
}

func (p *Pool) update(targets []*target) {
	added, removed := p.exchange(targets)
	for _, b := range removed {
		b.retire()
	}
	for _, b := range added {
		b.report()
	}
}

// exchange returns the builders that are new and those that are no more. One
// that changed is both.
func (p *Pool) exchange(targets []*target) (added, removed []*builder) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil
	}
	before := p.builders
	p.builders = make(map[string]*builder, len(targets))
	for _, t := range targets {
		old := before[t.name]
		if old != nil && old.target.sameAs(t) {
			old.setMaxJobs(t.maxJobs)
			old.setLoadWish(t.load)
			p.builders[t.name] = old
			delete(before, t.name)
			continue
		}
		b := newBuilder(p, t, old)
		p.builders[t.name] = b
		added = append(added, b)
	}
	for _, b := range before {
		removed = append(removed, b)
	}
	return added, removed
}

// Get returns a session with a builder: one that waits idle, or a
// new one. Its user calls Release or End. An error is an [Error], or that of ctx
// if it ended. A builder that failed lately is not tried, and the error comes at
// once.
func (p *Pool) Get(ctx context.Context, name string) (*Session, error) {
	for {
		b, err := p.enter(name)
		if err != nil {
			return nil, err
		}
		s, err := b.session(ctx)
		p.running.Done()
		if err == nil || ctx.Err() != nil || !b.isRetired() {
			return s, err
		}
		// Another way leads there meanwhile, or none: the next turn tells.
	}
}

// session returns a session for a user.
func (b *builder) session(ctx context.Context) (*Session, error) {
	if err := b.rest.enter(); err != nil {
		return nil, b.target.fault(Unreachable, err)
	}
	d, err := b.get(ctx)
	if err != nil {
		b.rest.leave()
		return nil, err
	}
	s := newSession(d)
	s.left = b.rest.leave
	return s, nil
}

func (b *builder) isRetired() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.retired
}

var (
	errClosed  = errors.New("connections to builders are closed")
	errUnknown = errors.New("is not configured")
)

// enter finds a builder and counts the caller as running.
func (p *Pool) enter(name string) (*builder, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.builders[name]
	switch {
	case p.closed:
		return nil, &Error{Builder: name, Kind: Unreachable, Err: errClosed}
	case b == nil:
		return nil, &Error{Builder: name, Kind: Unreachable, Err: errUnknown}
	}
	p.running.Add(1)
	return b, nil
}

// spawn runs f unless the pool is closed. Who is counted as running already need
// not ask.
func (p *Pool) spawn(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.running.Go(f)
	}
}

// aborter is what may have to be ended at once: a connection, or a session that
// has none.
type aborter interface{ abort(cause error) }

func (p *Pool) add(a aborter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[a] = true
}

func (p *Pool) drop(a aborter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, a)
}

// Close ends idle sessions, waits for the users of the others, and closes all
// connections. When ctx ends it waits no more: the connections are closed with
// what runs on them, and the error says so. Nothing of the pool runs afterwards.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	builders := p.builders
	p.builders = nil
	p.mu.Unlock()
	p.stop()
	for _, b := range builders {
		b.retire()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.running.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	cut := p.abortAll()
	<-done
	return fmt.Errorf("close %d connections to builders that were in use: %w", cut, ctx.Err())
}

func (p *Pool) abortAll() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a := range p.open {
		a.abort(errClosed)
	}
	return len(p.open)
}
