package proxy

import (
	"errors"
	"maps"
	"slices"
	"time"

	"nixbastion/internal/metrics"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
	"nixbastion/route"
)

// state is what a scrape reads. It asks nobody outside, and no lock is held for longer
// than to copy numbers.
func (p *Proxy) state() metrics.State {
	g := p.router.Gauges()
	s := metrics.State{
		Draining: p.Draining(), Ready: p.Ready() == nil, AuditFailing: p.audit.Trouble() != nil,
		Front: p.front.state(), Refusals: p.refusals.byWord(), Cache: p.cacheState(),
		Queue: metrics.Queue{Length: g.Waiting, Oldest: g.Oldest},
	}
	for i := range g.Builders {
		s.Builders = append(s.Builders, p.builderState(&g.Builders[i]))
	}
	return s
}

func (p *Proxy) builderState(g *route.BuilderGauges) metrics.Builder {
	c := p.pool.Counts(g.Name)
	return metrics.Builder{
		Name: g.Name, Slots: g.MaxJobs, SlotsUsed: g.Busy, Fetching: p.builds.copies.of(g.Name),
		Up: g.Up, Reachable: !g.Down, Drained: g.Drained, Overloaded: g.Overloaded, Asleep: g.Asleep, Breaker: breakerOf(g),
		DifferingTotal: p.builds.differences.of(g.Name),
		Connections:    c.Connections, Sessions: c.Sessions, SessionsIdle: c.SessionsIdle,
		DialsFailedTotal: c.DialsFailed, ReceivedTotal: c.Received, SentTotal: c.Sent,
		Load: p.builderLoad(g.Name),
	}
}

func breakerOf(g *route.BuilderGauges) metrics.Breaker {
	switch {
	case g.Suspended:
		return metrics.BreakerOpen
	case g.Trial:
		return metrics.BreakerHalfOpen
	}
	return metrics.BreakerClosed
}

// builderLoad is nil if it is not known now.
func (p *Proxy) builderLoad(name string) *metrics.Load {
	load, _, err := p.pool.Load(name)
	if err != nil {
		return nil
	}
	return &metrics.Load{Load1: load.Load1, MemoryAvailable: load.MemoryAvailable, DiskFree: load.DiskFree}
}

func (p *Proxy) cacheState() metrics.Cache {
	s := p.cache.Stats()
	return metrics.Cache{
		Bytes: s.Bytes, Limit: s.Limit, Paths: s.Paths, Arriving: s.Arriving, Hits: s.Hits, Misses: s.Misses,
		Added: s.Added, Evictions: s.Evictions, EvictedBytes: s.EvictedBytes, Differing: s.Differing, Broken: s.Broken, Corrupt: s.Corrupt,
		Unpublished: s.Unpublished, ScrubbedBytes: s.Scrubbed, Quarantined: s.Quarantined, QuarantinedBytes: s.QuarantinedBytes,
	}
}

// labelsOf are the builders and systems that metrics tell apart.
func labelsOf(pol *policy.Policy) (builders, systems []string) {
	all := map[string]bool{}
	for _, b := range pol.Builders {
		builders = append(builders, b.Name)
		for system := range b.Systems {
			all[system] = true
		}
	}
	return builders, slices.Collect(maps.Keys(all))
}

// operationDone counts an operation of a client. One whose client has left was not
// answered with an error.
func (p *Proxy) operationDone(op string, took time.Duration, err error) {
	p.metrics.Operation(op, took, err != nil && !errors.Is(err, worker.ErrHangUp))
}

var (
	errNotServing   = errors.New("clients are not taken yet")
	errDraining     = errors.New("the proxy is draining")
	errNotLookedYet = errors.New("it is not known yet which builders are there")
)

// Ready says why the proxy takes no clients, nil if it does. That no builder is up is no
// reason: reading needs none, and builds wait.
func (p *Proxy) Ready() error {
	switch {
	case p.Draining():
		return errDraining
	case len(p.front.addresses()) == 0:
		return errNotServing
	case !p.looked.Load():
		return errNotLookedYet
	}
	return nil
}

// Draining reports whether the proxy begins nothing new and ends when what runs has
// ended.
func (p *Proxy) Draining() bool { return p.front.isStopping() || p.front.isDraining() }

// result says how a request came to its build, for metrics.
func (j joined) result() metrics.RequestResult {
	if j == joinedFirst {
		return metrics.RequestStarted
	}
	return metrics.RequestJoined
}

// attemptResults are what an attempt came to on its builder, by blame.
var attemptResults = [...]metrics.AttemptResult{
	blameBuild: metrics.AttemptAnswered, blameBuilder: metrics.AttemptFault, blameMatch: metrics.AttemptMismatch,
	blameInput: metrics.AttemptInputLost, blameDoubt: metrics.AttemptDoubtful, blameNobody: metrics.AttemptUnreachable,
}

func (b blame) attempt() metrics.AttemptResult { return attemptResults[b] }

// count counts a build that ended.
func (t *tries) count(result *nix.BuildResult, err error, killed bool) {
	t.metrics.Build(t.order.system, t.builder, t.buildResult(result, err, killed))
}

func (t *tries) buildResult(result *nix.BuildResult, err error, killed bool) metrics.BuildResult {
	switch {
	case killed, errors.Is(err, errNobodyWaits), errors.Is(err, errShutdown):
		return metrics.BuildCanceled
	case err != nil || result == nil:
		return metrics.BuildError
	case t.answered == nil && errors.Is(t.none, route.ErrQueueFull):
		return metrics.BuildQueueFull
	case t.answered == nil && t.doubted == nil:
		return metrics.BuildNoBuilder
	}
	switch result.Status {
	case nix.StatusBuilt:
		return metrics.BuildBuilt
	case nix.StatusTimedOut:
		return metrics.BuildTimedOut
	case nix.StatusLogLimitExceeded:
		return metrics.BuildLogLimit
	}
	if result.Status.Success() {
		return metrics.BuildAlreadyThere
	}
	return metrics.BuildFailed
}
