package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/metrics"
	"nixbastion/internal/nix"
	"nixbastion/internal/tracefile"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// endTimeout is how long the end of a builder's session is waited for after its
// build was given up; the slot is only then free for somebody else.
const endTimeout = 15 * time.Second

// errInternal is what is left of a panic.
var errInternal = errors.New("internal error; the log of the proxy has the details")

// order is a build that a client asked for, with all that decides where it may
// run and whether two of them are the same.
type order struct {
	principal *policy.Principal
	drvPath   nix.StorePath
	drv       *nix.BasicDerivation
	mode      nix.BuildMode
	limits    buildLimits
	// who asked first; nil if nobody has logged in.
	who      *Identity
	system   string
	features []string
	needs    map[string]int64 // of builders' resources
	// inputs are the infos of drv.InputSrcs, in that order, and then of what they
	// refer to. With outputsHere the outputs that are to be compared follow, with what
	// they refer to.
	inputs      []*nix.PathInfo
	outputsHere bool
	log         *slog.Logger
	// feeder is that of the client who asked first.
	feeder *feeder
	// lost reports, once the client has gone, whether it was lost. Nil: it was not.
	lost func() bool
}

// key digests everything that makes two orders the same build.
func (o *order) key() buildKey {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %d %d %q %q %q", o.principal.Domain, o.drvPath, o.mode, o.limits, o.drv.Platform, o.drv.Builder, o.drv.Args)
	for _, out := range o.drv.Outputs {
		fmt.Fprintf(h, " o%q%q%q%q", out.Name, out.Path, out.HashAlgo, out.Hash)
	}
	for _, v := range o.drv.Env {
		fmt.Fprintf(h, " e%q%q", v.Name, v.Value)
	}
	for _, in := range o.inputs {
		fmt.Fprintf(h, " i%q%q", in.Path, in.NarHash)
	}
	return buildKey(h.Sum(nil))
}

// builds is where route, upstream and cache meet: it takes an order to a
// builder and its outputs into the cache.
type builds struct {
	router *route.Router
	pool   *upstream.Pool
	cache  *cache.Cache
	policy *policy.Live
	logDir string

	history     *tracefile.Recorder // nil for none
	metrics     *metrics.Metrics
	rates       *rates // of builds
	refusals    *refusals
	inflight    *inflight
	ledger      *ledger
	sending     *sending
	feeds       *feeds
	differences *differences
	suspects    *suspects
	copies      copies
	sleepers    *sleepers
	grace       grace
	drained     func(builder string) bool
	misses      *misses
	audit       Auditor
	// proofs has one token for each plan being read.
	proofs chan struct{}
	// fetches are the outputs on their way into the cache after their builds
	// were answered, and what else builds leave running.
	fetches sync.WaitGroup
	// fetchCtx ends when the proxy stops; a client that leaves does not end it.
	fetchCtx context.Context
}

// build runs an order, or attends an equal one that runs already, and returns
// its result. The log goes to the client while it runs, with offset added to
// activity ids.
func (b *builds) build(ctx context.Context, o *order, log nix.Logger, offset uint64) (*nix.BuildResult, error) {
	key := o.key()
	buildLog := newBuildLog(b.logDir, b.policy.Current().Limits.BuildLog)
	running, how := b.inflight.join(ctx, key, buildLog, func(ctx context.Context, running *build) (*nix.BuildResult, error) {
		return b.run(ctx, key, running, o)
	})
	defer b.leave(o, key, running)
	b.metrics.BuildRequest(how.result())
	if how != joinedFirst {
		running.askers.add(askerOf(o.principal))
	}
	if text := how.text(); text != "" {
		nix.Line(log, fmt.Sprintf("waiting for '%s', %s", o.drvPath, text))
	}
	asked := time.Now()
	result, err := running.wait(ctx, log, offset)
	if err != nil {
		b.attendedInVain(ctx, o, how, err)
		return nil, err
	}
	b.record(o, asked, running, result)
	return b.attended(o, how, running, result)
}

// run has an order built and keeps how that ended.
func (b *builds) run(ctx context.Context, key buildKey, running *build, o *order) (*nix.BuildResult, error) {
	e := b.ledger.begin(o, key, running)
	running.kept = func() { b.ledger.keep(e) }
	t := b.newTries(o, running.log)
	t.askers, t.entry = running.askers, e
	began := time.Now()
	result, err := t.build(ctx)
	running.seconds, running.builder = t.seconds, t.builder
	killed := killedBy(ctx)
	if err == nil && result.Status.Success() {
		killed = nil // too late
	}
	if killed != nil {
		result, err = killed.result(o), nil
	}
	t.count(result, err, killed != nil)
	result, err = b.built(ctx, t, began, result, err)
	e.end(result, err, killed != nil)
	return result, err
}

// build tries builders until one has built the order, or none is left.
func (t *tries) build(ctx context.Context) (*nix.BuildResult, error) {
	if t.order.mode != nix.BuildNormal {
		if failure := t.narrow(ctx); failure != nil {
			return failure, nil
		}
	}
	return t.run(ctx)
}

// answer makes a failed build of an error that no other builder would mend: the end
// by a limit, or a store of ours that fails; nil for all others.
func (t *tries) answer(err error) *nix.BuildResult {
	var limit *limitError
	var store *storeError
	var input *inputError
	switch {
	case errors.As(err, &limit):
		t.order.log.Info("build ended by a limit", "drv", t.order.drvPath.String(), "limit", limit.text)
		return nix.Failure(limit.status, "%s", limit.text)
	case errors.As(err, &store):
		t.order.log.Error("outputs cannot be stored", "drv", t.order.drvPath.String(), "error", err)
		return nix.Failure(nix.StatusTransientFailure, "outputs of '%s' are built and cannot be stored: %s", t.order.drvPath, endText(store.err))
	case errors.As(err, &input):
		t.order.log.Error("inputs cannot be read", "drv", t.order.drvPath.String(), "error", err)
		return nix.Failure(nix.StatusTransientFailure, "inputs of '%s' cannot be read in the proxy's store: %s", t.order.drvPath, endText(input.err))
	}
	return nil
}

// acquire asks for a place after a pause, and tells the client what it waits for.
func (t *tries) acquire(ctx context.Context, req route.Request, pause time.Duration) (*route.Lease, error) {
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	says := newWaitLines(t.log, t.order.drvPath)
	defer says.stop()
	asked := time.Now()
	lease, err := t.router.Acquire(ctx, req, says.waiting)
	if err == nil {
		t.metrics.QueueWait(req.System, time.Since(asked))
	}
	return lease, err
}

// panicked logs a panic in a goroutine that works for a build and returns an error in its place.
func (t *tries) panicked(p any) error { return panicked(t.order, p) }

func panicked(o *order, p any) error {
	o.log.Error("panic", "where", "build", "drv", o.drvPath.String(),
		"panic", quoted(fmt.Sprint(p)), "stack", string(debug.Stack()))
	return errInternal
}

// buildOn brings the inputs and builds, on one session: the builder keeps what
// the session named from its garbage collector for just as long.
func (t *attempt) buildOn(ctx context.Context, sess *upstream.Session) (*nix.BuildResult, error) {
	match := t.mustMatch(sess.Builder())
	push := &push{
		cache: t.cache, domain: t.order.principal.Domain, inputs: t.order.inputs, log: t.log,
		match: match, differences: t.differences, sending: t.sending, feeder: t.order.feeder,
	}
	t.step.Store(stepInputs)
	if err := push.run(ctx, sess); err != nil {
		return nil, fmt.Errorf("bring inputs to %s: %w", sess.Builder(), err)
	}
	t.lease.Transferred(push.sent, push.took)
	t.step.Store(stepBuild)
	if match {
		proof := t.prove(ctx, t.order)
		defer proof.stop()
		result, err := t.buildHere(ctx, sess)
		t.proven = err == nil && t.proves(proof, result)
		return result, err
	}
	t.proven = false
	return t.buildHere(ctx, sess)
}

// proves reports whether the outputs of a build are proven, and logs why they are
// not. What the builder had already, or got from elsewhere, is not from our inputs.
func (t *attempt) proves(proof *proof, result *nix.BuildResult) bool {
	if result.Status != nix.StatusBuilt || t.order.mode == nix.BuildCheck {
		return false
	}
	err := proof.wait()
	if err == nil {
		err = t.provenInputs(t.order)
	}
	if err != nil {
		t.order.log.Info("outputs are not proven", "drv", t.order.drvPath.String(), "reason", lastWords(err.Error()))
	}
	return err == nil
}

// lastWords cuts what every derivation on the way adds to the reason that is below.
func lastWords(text string) string {
	const limit = 400
	if len(text) > limit {
		return "..." + strings.ToValidUTF8(text[len(text)-limit:], "")
	}
	return text
}

// buildHere builds where the inputs are.
func (t *attempt) buildHere(ctx context.Context, sess *upstream.Session) (*nix.BuildResult, error) {
	nix.Line(t.log, fmt.Sprintf("%s '%s' on '%s'", doing[t.order.mode], t.order.drvPath, sess.Builder()))
	started := time.Now()
	defer t.log.stopAll()
	ctx, dog := watch(ctx, t.order, t.log)
	defer dog.stop()
	t.lease.Began()
	result, err := sess.BuildDerivation(ctx, dog, t.order.drvPath, t.order.drv, t.order.mode)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("build on %s: %w", sess.Builder(), err)
	}
	t.metrics.BuildDuration(t.order.system, time.Since(started))
	t.order.limits.explain(result, sess.Builder())
	t.order.log.Info(done[t.order.mode], "drv", t.order.drvPath.String(), "builder", sess.Builder(),
		"status", result.Status.String(), "seconds", time.Since(started).Seconds())
	return result, nil
}

// What builds of each mode are called, while they run and afterwards.
var (
	doing = [...]string{nix.BuildNormal: "building", nix.BuildRepair: "repairing", nix.BuildCheck: "checking outputs of"}
	done  = [...]string{nix.BuildNormal: "built", nix.BuildRepair: "repaired", nix.BuildCheck: "checked"}
)

// mustMatch reports whether inputs that the builder holds must have our bytes.
func (t *tries) mustMatch(builder string) bool {
	b := t.policy.Current().BuilderNamed(builder)
	return b == nil || b.Content != policy.ContentAccept // removed meanwhile: the strict way
}
