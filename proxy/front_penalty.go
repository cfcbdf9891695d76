package proxy

import (
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nixbastion/policy"
)

// offence is what a source is kept out for.
type offence int

const (
	offenceByItself offence = iota // see frontConn.offence
	offenceNone
	offenceNoAuth        // went without a login, or before one was tried
	offenceAuthFail      // its keys were refused
	offenceGraceExceeded // came to no end in time
	offenceCrash         // brought our code down
)

// maxPenalised is how many sources are remembered; then those go that offended the
// longest ago. As in OpenSSH, who has so many addresses is not stopped by this.
const maxPenalised = 65536

// penalties keep sources out that fail to log in, as PerSourcePenalties of OpenSSH:
// each offence adds to the time that a source has to wait, and from a least sum on it
// is kept out.
//
// Unlike there, a source is not kept out from which somebody is logged in: behind one
// address may be a whole office, and one wrong key in it must not stop its builds.
type penalties struct {
	rules func() policy.Penalties // what counts now

	mu      sync.Mutex // guards what follows
	guilty  *simplelru.LRU[netip.Prefix, *guilt]
	present map[netip.Prefix]int // connections that are logged in
}

type guilt struct {
	until   time.Time
	keepOut bool // the sum was large enough
}

func newPenalties(rules func() policy.Penalties) *penalties {
	guilty, err := simplelru.NewLRU[netip.Prefix, *guilt](maxPenalised, nil)
	if err != nil {
		panic(err) // the size is a constant above zero
	}
	return &penalties{rules: rules, guilty: guilty, present: map[netip.Prefix]int{}}
}

// left is how long an address is kept out still, 0 if it is not.
func (p *penalties) left(addr netip.Addr) time.Duration {
	if rules := p.rules(); rules.Off || exempt(rules, addr) {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	from := source(addr)
	g, ok := p.guilty.Peek(from)
	if !ok || p.present[from] > 0 {
		return 0
	}
	left := time.Until(g.until)
	if left <= 0 {
		p.guilty.Remove(from)
		return 0
	}
	if !g.keepOut {
		return 0
	}
	return left
}

// add notes an offence. It returns for how long the source is kept out if it is from
// now on, else 0.
func (p *penalties) add(addr netip.Addr, what offence) time.Duration {
	rules := p.rules()
	if rules.Off || exempt(rules, addr) || penaltyFor(rules, what) == 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	from, now := source(addr), time.Now()
	g, ok := p.guilty.Get(from)
	if !ok || !g.until.After(now) {
		g = &guilt{until: now}
		p.guilty.Add(from, g)
	}
	g.until = g.until.Add(penaltyFor(rules, what))
	if most := now.Add(rules.Max); g.until.After(most) {
		g.until = most
	}
	// In whole seconds, as there: three times five make fifteen.
	sum := g.until.Sub(now)
	if g.keepOut || sum <= rules.Min-time.Second {
		return 0
	}
	g.keepOut = true
	return sum
}

func penaltyFor(rules policy.Penalties, what offence) time.Duration {
	switch what {
	case offenceNoAuth:
		return rules.NoAuth
	case offenceAuthFail:
		return rules.AuthFail
	case offenceGraceExceeded:
		return rules.GraceExceeded
	case offenceCrash:
		return rules.Crash
	}
	return 0
}

func exempt(rules policy.Penalties, addr netip.Addr) bool { return inNetworks(rules.Exempt, addr) }

func inNetworks(networks []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// enter and leave count who is logged in from a source.
func (p *penalties) enter(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.present[source(addr)]++
}

func (p *penalties) leave(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := source(addr)
	if p.present[from]--; p.present[from] == 0 {
		delete(p.present, from)
	}
}

// penalise makes a source pay for how its login ended, if that is its fault.
func (c *frontConn) penalise(what offence) {
	if c.balancer {
		return
	}
	left := c.front.penalties.add(c.remote.Addr(), what)
	if left == 0 {
		return
	}
	c.front.refusals.note(PenalisedSource, slog.LevelWarn, "ssh source is kept out", append(c.where(), "source", source(c.remote.Addr()).String(), "for", left.Round(time.Second).String())...)
}

// offence is what an ended connection without a login is guilty of. Who ended it for a
// reason of ours says so; a key that counts is no offence, whatever came in its way.
func (c *frontConn) offence(offeredKeys bool) offence {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.known || c.front.isStopping():
		return offenceNone
	case c.fault != offenceByItself:
		return c.fault
	case offeredKeys:
		return offenceAuthFail
	}
	return offenceNoAuth
}
