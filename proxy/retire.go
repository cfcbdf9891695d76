package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// drainedTold is what clients whose builds run are told when the proxy drains.
const drainedTold = "nixbastion: this host restarts; the build goes on and has %s to end"

// Drain lets clients come to the end of what they do, once Serve has returned: builds
// that run and sessions that ask for something go on, until ctx ends. left is for
// how long that is, for people.
func (p *Proxy) Drain(ctx context.Context, left time.Duration) {
	p.builds.inflight.tellAll(fmt.Sprintf(drainedTold, left))
	p.front.Drain(ctx, Draining{Idle: idleAtRestart})
}

const (
	// idleAtRestart is how long a session may ask for nothing while others wait for
	// the restart: a client that waits for its turn to upload is silent meanwhile.
	idleAtRestart = 15 * time.Second
	// idleAtUpgrade is the same where nobody waits.
	idleAtUpgrade = 10 * time.Minute
)

// DrainReplaced is Drain for a proxy whose place another process has taken. Jumps are
// waited for, and nobody needs to be told.
func (p *Proxy) DrainReplaced(ctx context.Context) {
	p.front.Drain(ctx, Draining{Idle: idleAtUpgrade, Jumps: true})
}

// oldProcess reports whether a process whose place this one has taken still runs.
func (p *Proxy) oldProcess() bool { return p.cache.Shared() }

// Retire gives all that only one process may have to another one: the store's index,
// and the files of what was learned. Clients are served as before. Resume takes it
// back, as long as the other has served nobody.
func (p *Proxy) Retire(ctx context.Context) error {
	p.signing.off.Store(true)
	p.signing.halt()
	p.learned.give(p.router)
	p.drains.give(true)
	var err error
	if p.builds.history != nil {
		err = p.builds.history.Close()
	}
	if err := errors.Join(err, p.cache.Retire(ctx)); err != nil {
		return errors.Join(err, p.Resume(ctx))
	}
	return nil
}

// Resume is the opposite of Retire.
func (p *Proxy) Resume(ctx context.Context) error {
	err := p.cache.Reclaim(ctx)
	if p.builds.history != nil {
		err = errors.Join(err, p.builds.history.Reopen())
	}
	p.learned.given.Store(false)
	p.drains.give(false)
	p.signing.off.Store(false)
	p.signing.begin(p.builds.fetchCtx)
	return err
}

// LookAtDrains takes in which builders are drained, after Retire, when the process that
// has the list now has changed it.
func (p *Proxy) LookAtDrains() { p.drains.look() }

// Alive returns once it was seen that nothing which each client needs is stuck.
func (p *Proxy) Alive() {
	p.front.addresses()
	p.cache.Stats()
	p.router.Down("")
	p.policy.Current()
}
