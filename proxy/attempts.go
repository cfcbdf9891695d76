package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"nixbastion/internal/metrics"
	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

const (
	// lostTwice is how often a builder may be lost in the middle of one build. The
	// second time it is chosen only where no other is left.
	lostTwice = 2
	// lostPatience is how long an order that lost its builder waits while all that are
	// left are down: a builder whose sshd is restarted is back in a moment.
	lostPatience = 30 * time.Second
	// unreachedPause is how long an order waits, at first and at most, before it asks
	// for a place again when it was sent twice to a builder that cannot be reached.
	// Mostly the router knows of those before.
	unreachedPause, unreachedPauseMax = 100 * time.Millisecond, 5 * time.Second
)

var (
	// errDecided ends what still runs of a build that has its answer.
	errDecided = errors.New("another copy of this build was first")
	// errAttempts says that a build was tried as often as the policy allows.
	errAttempts = errors.New("it was tried on as many builders as the policy allows")
)

// tries is the way of one order over its builders. One goroutine, that of run,
// decides; attempts and the wait for a place run beside it and post what came of
// them. Usually one attempt runs at a time: another begins only when the builder of
// that one hangs, and then the first answer counts.
type tries struct {
	*builds
	order    *order
	askers   *askers
	entry    *ledgerEntry // nil is none
	log      *buildLog
	activity atomic.Uint64 // last activity id in log

	// events are called by run, until over is closed.
	events chan func()
	over   chan struct{}
	// working counts attempts and the wait for a place. They are also among
	// builds.fetches, since those that are not needed any more outlive run.
	working sync.WaitGroup

	// What follows belongs to the goroutine of run.
	running   []*attempt
	stopSeek  context.CancelFunc // nil if no place is waited for
	trail     []trial
	excluded  []route.Exclusion
	avoided   []route.Exclusion
	lacking   []route.Exclusion // builders without the outputs that are to be compared
	lost      map[string]int    // by builder
	stale     map[string]bool   // builders whose session was dead before it was taken
	unreached map[string]int
	pause     time.Duration    // before the next place is asked for
	doubted   *nix.BuildResult // a failure that another builder is to confirm
	none      error            // why there is no further builder
	answered  *nix.BuildResult
	seconds   float64 // of what was answered, at speed 1
	builder   string  // whose answer that is
}

// trial is an attempt that gave no answer.
type trial struct {
	builder, reason string
	took            time.Duration
}

func (b *builds) newTries(o *order, log *buildLog) *tries {
	return &tries{
		builds: b, order: o, log: log, events: make(chan func()), over: make(chan struct{}),
		lost: map[string]int{}, stale: map[string]bool{}, unreached: map[string]int{},
	}
}

// run tries builders until there is an answer, or none is left.
func (t *tries) run(ctx context.Context) (*nix.BuildResult, error) {
	runCtx, cancel := context.WithCancelCause(ctx)
	defer func() {
		close(t.over)
		cancel(errDecided)
		if ctx.Err() != nil {
			t.working.Wait() // whoever cancels a build may wait until nothing of it is left
		}
	}()
	for t.answered == nil {
		if t.wantsBuilder() {
			t.seek(runCtx)
		}
		if len(t.running) == 0 && t.stopSeek == nil {
			return t.noBuilder()
		}
		select {
		case event := <-t.events:
			if ctx.Err() == nil { // else what came of it is our own doing
				event()
			}
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return t.answered, nil
}

// post has run call a function, and reports whether it does.
func (t *tries) post(event func()) bool {
	select {
	case t.events <- event:
		return true
	case <-t.over:
		return false
	}
}

func (t *tries) spawn(f func()) {
	t.working.Add(1)
	t.fetches.Go(func() {
		defer t.working.Done()
		f()
	})
}

// wantsBuilder reports whether nothing runs but what hangs, and something may begin.
func (t *tries) wantsBuilder() bool {
	sound := slices.ContainsFunc(t.running, func(a *attempt) bool { return !a.hung })
	return !sound && t.stopSeek == nil && t.none == nil
}

// seek asks for a place.
func (t *tries) seek(ctx context.Context) {
	if t.triedBuilders() >= max(1, t.policy.Current().Scheduling.Attempts) {
		t.none = errAttempts
		return
	}
	seekCtx, stop := context.WithCancel(ctx)
	t.stopSeek = stop
	req, pause := t.request(), t.pause
	t.spawn(func() {
		defer stop()
		lease, err := t.acquire(seekCtx, req, pause)
		if !t.post(func() { t.found(ctx, lease, err) }) && lease != nil {
			lease.Release()
		}
	})
}

// triedBuilders counts the builders on which the order was, or is.
func (t *tries) triedBuilders() int {
	builders := map[string]bool{}
	for _, tr := range t.trail {
		builders[tr.builder] = true
	}
	for _, a := range t.running {
		builders[a.lease.Builder()] = true
	}
	return len(builders)
}

// request is what the router is asked for now.
func (t *tries) request() route.Request {
	req := t.requestOf(t.order)
	req.Exclude = t.exclusions()
	// Builders that are worse than others: for this order, or for any build of its derivation.
	req.Avoid = unique(append(slices.Clone(t.avoided), req.Avoid...))
	t.askers.into(&req)
	if len(t.lost) > 0 {
		req.Patience = max(req.Patience, lostPatience)
	}
	return req
}

// exclusions names each builder once: one that failed may lack the outputs, too.
func (t *tries) exclusions() []route.Exclusion {
	all := slices.Clone(t.excluded)
	for _, a := range t.running {
		all = append(all, route.Exclusion{Builder: a.lease.Builder(), Reason: "does not answer, with a copy of this build"})
	}
	return unique(append(all, t.lacking...))
}

// unique keeps the first exclusion of each builder.
func unique(all []route.Exclusion) []route.Exclusion {
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(ex route.Exclusion) bool {
		again := seen[ex.Builder]
		seen[ex.Builder] = true
		return again
	})
}

// found takes what came of asking for a place.
func (t *tries) found(ctx context.Context, lease *route.Lease, err error) {
	t.stopSeek = nil
	switch {
	case err == nil && !t.wantsBuilder(): // what hung goes on
		lease.Release()
	case err == nil:
		t.begin(ctx, lease)
	case !t.wantsBuilder(), t.widen(err):
	default:
		t.none = err
	}
}

// begin runs the order on the builder of a lease. What it says is shown from now on,
// and not what a builder says that hung and wakes up.
func (t *tries) begin(ctx context.Context, lease *route.Lease) {
	for _, other := range t.running {
		other.log.hold()
	}
	a := t.newAttempt(lease)
	t.running = append(t.running, a)
	t.entry.runs(t.running)
	t.spawn(func() {
		out := a.run(ctx)
		t.post(func() { t.ended(a, out) })
		a.finish(ctx)
	})
}

// ended takes how an attempt ended.
func (t *tries) ended(a *attempt, out outcome) {
	t.running = slices.DeleteFunc(t.running, func(other *attempt) bool { return other == a })
	var limit *limitError
	switch {
	case out.blame == blameBuild && a.hung && errors.As(out.err, &limit): // by the silence of a builder that hangs
		out.blame = blameBuilder
		t.failed(a, out)
	case out.blame == blameBuild, out.blame == blameDoubt && t.doubted != nil:
		t.decide(a, out)
	default:
		t.failed(a, out)
	}
	if len(t.running) == 1 && t.answered == nil {
		t.running[0].log.show()
	}
}

// decide makes the result of an attempt the answer.
func (t *tries) decide(a *attempt, out outcome) {
	for _, other := range t.running {
		other.log.drop()
		nix.Line(t.log, fmt.Sprintf("the copy on '%s' was first; the one on '%s' is given up", a.lease.Builder(), other.lease.Builder()))
	}
	a.log.show()
	t.entry.decided(a)
	t.answered, t.seconds, t.builder = out.result, a.seconds, a.lease.Builder()
	t.metrics.Attempt(t.builder, metrics.AttemptAnswered)
}

// failed goes on after an attempt that gave no answer.
func (t *tries) failed(a *attempt, out outcome) {
	builder := a.lease.Builder()
	a.log.drop()
	t.note(a, out)
	t.none, t.pause = nil, 0 // there may be a builder now, this one for example
	exclusion := route.Exclusion{Builder: builder, Reason: out.reason}
	var fault *upstream.Error
	switch {
	case out.stale && !t.stale[builder]:
		t.stale[builder] = true
	case out.blame == blameNobody:
		t.notReached(exclusion)
	case errors.As(out.err, &fault) && (fault.Kind == upstream.Lost || fault.Kind == upstream.Hung):
		if t.lost[builder]++; t.lost[builder] >= lostTwice {
			t.excluded = append(t.excluded, exclusion)
		}
		t.avoided = append(t.avoided, exclusion)
	default:
		t.excluded = append(t.excluded, exclusion)
	}
	if out.blame == blameDoubt {
		t.doubted = out.result
	}
}

// notReached remembers a builder that could not be reached: nothing was tried there,
// so that it may be chosen again. The router knows mostly that it is down, and does
// not choose it before it is up; where it does not know the order must not turn
// round and round.
func (t *tries) notReached(exclusion route.Exclusion) {
	t.unreached[exclusion.Builder]++
	if again := t.unreached[exclusion.Builder] - 2; again >= 0 {
		t.pause = min(unreachedPause<<min(again, 10), unreachedPauseMax)
		t.avoided = append(t.avoided, exclusion)
	}
}

// note tells of an attempt that gave no answer: the client, the log, the builds of
// everybody, and, in the end, who asks why there is none.
func (t *tries) note(a *attempt, out outcome) {
	builder, took := a.lease.Builder(), time.Since(a.began)
	t.metrics.Attempt(builder, out.blame.attempt())
	counts := out.blame != blameNobody && !(out.stale && !t.stale[builder])
	if counts {
		t.trail = append(t.trail, trial{builder, out.reason, took})
		t.entry.tried(builder, out.reason, took)
	}
	t.order.log.Warn("builder failed a build", "builder", builder, "drv", t.order.drvPath.String(), "attempt", len(t.trail),
		"phase", a.phase(), "blame", out.blame.String(), "seconds", took.Seconds(), "reason", out.reason, "error", errorText(out))
	if counts && out.blame == blameBuilder {
		window := faultWindow
		if a.hungOnce {
			window = aftermath
		}
		t.suspects.fault(builder, out.reason, window)
	}
	next := "looking for another builder"
	if len(t.running) > 0 {
		next = "its copy goes on"
	}
	nix.Line(t.log, fmt.Sprintf("builder '%s': %s; %s", builder, out.reason, next))
}

func errorText(out outcome) string {
	switch {
	case out.err != nil:
		return out.err.Error()
	case out.result != nil:
		return out.result.ErrorMsg
	}
	return out.reason
}

// noBuilder is the answer when no builder can or could run the order.
func (t *tries) noBuilder() (*nix.BuildResult, error) {
	if t.doubted != nil {
		return t.doubted, nil
	}
	var none *route.NoBuilderError
	text := t.none.Error()
	switch {
	case errors.Is(t.none, errAttempts):
		text = fmt.Sprintf("'%s' was not built: %s", t.order.drvPath, text)
	case !errors.As(t.none, &none) && !errors.Is(t.none, route.ErrQueueFull):
		return nil, t.none
	}
	tried := t.tried()
	t.order.log.Warn("no builder", "drv", t.order.drvPath.String(), "error", t.none, "tried", tried)
	if tried != "" {
		text += "\ntried " + tried
	}
	return nix.Failure(nix.StatusMiscFailure, "%s", text), nil
}

// tried lists the attempts that gave no answer.
func (t *tries) tried() string {
	parts := make([]string, len(t.trail))
	for i, tr := range t.trail {
		parts[i] = fmt.Sprintf("%s: %s, after %s", tr.builder, tr.reason, rounded(tr.took))
	}
	return strings.Join(parts, "; ")
}

// rounded is a duration as people read it.
func rounded(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}
