package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
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
	system    string
	features  []string
	needs     map[string]int64 // of builders' resources
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

	inflight    *inflight
	sending     *sending
	feeds       *feeds
	differences *differences
	misses      *misses
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
		return b.run(ctx, running, o)
	})
	defer b.leave(o, key, running)
	if text := how.text(); text != "" {
		nix.Line(log, fmt.Sprintf("waiting for '%s', %s", o.drvPath, text))
	}
	return running.wait(ctx, log, offset)
}

// run tries builders until one has built the order, or none is left.
func (b *builds) run(ctx context.Context, running *build, o *order) (*nix.BuildResult, error) {
	t := &tries{builds: b, order: o, log: running.log, failed: map[string]int{}}
	if o.mode != nix.BuildNormal {
		if failure := t.narrow(ctx); failure != nil {
			return failure, nil
		}
	}
	for {
		lease, err := t.acquire(ctx)
		if err != nil && t.widen(err) {
			continue
		}
		if err != nil {
			return t.noLease(ctx, err)
		}
		result, err := t.attempt(ctx, lease)
		if err == nil {
			return result, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if failure := t.answer(err); failure != nil {
			return failure, nil
		}
		t.exclude(lease.Builder(), err)
	}
}

// answer makes a failed build of an error that no other builder would mend: one
// that a builder's daemon reported in good order, the end by a limit, or a store of
// ours that is full; nil for a builder that broke.
func (t *tries) answer(err error) *nix.BuildResult {
	var limit *limitError
	var store *storeError
	var remote *nix.RemoteError
	switch {
	case errors.As(err, &limit):
		t.order.log.Info("build ended by a limit", "drv", t.order.drvPath.String(), "limit", limit.text)
		return nix.Failure(limit.status, "%s", limit.text)
	case errors.As(err, &store):
		t.order.log.Error("outputs cannot be stored", "drv", t.order.drvPath.String(), "error", err)
		return nix.Failure(nix.StatusTransientFailure, "outputs of '%s' are built and cannot be stored: %s", t.order.drvPath, endText(store.err))
	case !upstream.Broken(err) && errors.As(err, &remote):
		return nix.Failure(nix.StatusMiscFailure, "%s", remote.Message)
	}
	return nil
}

// tries is the way of one order over its builders.
type tries struct {
	*builds
	order    *order
	log      *buildLog
	activity uint64 // last activity id in log
	failed   map[string]int
	// proven says of the last attempt that what it built is proven.
	proven   bool
	excluded []route.Exclusion
	// lacking are builders without the outputs that are to be compared.
	lacking []route.Exclusion
}

// lostTwice is when a builder that was lost in the middle is given up for this
// build: a pooled connection may have been dead already, which a fresh one cures.
const lostTwice = 2

// exclude keeps the order away from a builder that failed it, and says so.
func (t *tries) exclude(builder string, err error) {
	t.order.log.Warn("builder failed a build", "builder", builder, "drv", t.order.drvPath.String(), "error", err)
	t.failed[builder]++
	var fault *upstream.Error
	if errors.As(err, &fault) && fault.Kind == upstream.Lost && t.failed[builder] < lostTwice {
		nix.Line(t.log, fmt.Sprintf("builder '%s': %v; trying it once more", builder, userText(err)))
		return
	}
	t.excluded = append(t.excluded, route.Exclusion{Builder: builder, Reason: userText(err)})
	nix.Line(t.log, fmt.Sprintf("builder '%s': %v; looking for another builder", builder, userText(err)))
}

// userText returns the words of an error that a client may read, without the name
// of a builder.
func userText(err error) string {
	var user *nix.UserError
	var fault *upstream.Error
	switch {
	case errors.As(err, &fault):
		return fault.Reason()
	case errors.As(err, &user):
		return user.Message
	default:
		return "failed"
	}
}

func (t *tries) acquire(ctx context.Context) (*route.Lease, error) {
	says := newWaitLines(t.log, t.order.drvPath)
	return t.router.Acquire(ctx, t.request(), says.waiting)
}

// request is what the router is asked for now.
func (t *tries) request() route.Request {
	req := t.requestOf(t.order)
	req.Exclude = t.exclusions()
	return req
}

// exclusions names each builder once: one that failed may lack the outputs, too.
func (t *tries) exclusions() []route.Exclusion {
	all := slices.Clone(t.excluded)
	for _, ex := range t.lacking {
		if !slices.ContainsFunc(all, func(other route.Exclusion) bool { return other.Builder == ex.Builder }) {
			all = append(all, ex)
		}
	}
	return all
}

// noLease makes a failed build of an order that no builder can or could run.
func (t *tries) noLease(ctx context.Context, err error) (*nix.BuildResult, error) {
	var none *route.NoBuilderError
	if !errors.As(err, &none) && !errors.Is(err, route.ErrQueueFull) {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	t.order.log.Warn("no builder", "drv", t.order.drvPath.String(), "error", err)
	return nix.Failure(nix.StatusMiscFailure, "%s", err), nil
}

// attempt runs the order on the builder of a lease. The slot is free again when
// the builder has replied, or when its session was seen to end.
func (t *tries) attempt(ctx context.Context, lease *route.Lease) (_ *nix.BuildResult, err error) {
	defer lease.Release()
	sess, err := t.session(ctx, lease.Builder())
	if err != nil {
		return nil, err
	}
	defer func() {
		// What one builder sends must not take everybody else's builds with it.
		if p := recover(); p != nil {
			err = t.panicked(p)
			t.end(ctx, sess)
		}
	}()
	result, err := t.buildOn(ctx, sess)
	if err != nil {
		t.end(ctx, sess)
		return nil, err
	}
	lease.Release()
	switch {
	case !result.Status.Success():
		sess.Release()
		return result, nil
	case t.order.mode == nix.BuildCheck: // which leaves everything as it was
		sess.Release()
		result.Outputs = builtOutputs(t.order.drv)
		return result, nil
	}
	return t.takeOutputs(ctx, sess, result)
}

// panicked logs a panic in a goroutine that works for a build and returns an error in its place.
func (t *tries) panicked(p any) error { return panicked(t.order, p) }

func panicked(o *order, p any) error {
	o.log.Error("panic", "where", "build", "drv", o.drvPath.String(),
		"panic", quoted(fmt.Sprint(p)), "stack", string(debug.Stack()))
	return errInternal
}

// end closes a session that is not to be used again and waits for its end.
func (t *tries) end(ctx context.Context, sess *upstream.Session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := sess.End(ctx); err != nil {
		t.order.log.Warn("builder's session did not end in order", "builder", sess.Builder(), "error", err)
	}
}

// buildOn brings the inputs and builds, on one session: the builder keeps what
// the session named from its garbage collector for just as long.
func (t *tries) buildOn(ctx context.Context, sess *upstream.Session) (*nix.BuildResult, error) {
	match := t.mustMatch(sess.Builder())
	push := &push{
		cache: t.cache, domain: t.order.principal.Domain, inputs: t.order.inputs, log: t.log,
		match: match, differences: t.differences, sending: t.sending, feeder: t.order.feeder,
	}
	if err := push.run(ctx, sess); err != nil {
		return nil, fmt.Errorf("bring inputs to %s: %w", sess.Builder(), err)
	}
	t.noteHeld(sess.Builder())
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
func (t *tries) proves(proof *proof, result *nix.BuildResult) bool {
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
func (t *tries) buildHere(ctx context.Context, sess *upstream.Session) (*nix.BuildResult, error) {
	nix.Line(t.log, fmt.Sprintf("%s '%s' on '%s'", doing[t.order.mode], t.order.drvPath, sess.Builder()))
	started := time.Now()
	log := newAttemptLog(t.log, sess.Builder(), &t.activity)
	defer log.stopAll()
	ctx, dog := watch(ctx, t.order, log)
	defer dog.stop()
	result, err := sess.BuildDerivation(ctx, dog, t.order.drvPath, t.order.drv, t.order.mode)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("build on %s: %w", sess.Builder(), err)
	}
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
	for _, b := range t.policy.Current().Builders {
		if b.Name == builder {
			return b.Content != policy.ContentAccept
		}
	}
	return true // removed meanwhile: the strict way
}

func (t *tries) noteHeld(builder string) {
	ids := make([]route.PathID, len(t.order.inputs))
	for i, in := range t.order.inputs {
		ids[i] = t.router.Intern(in.Path.String())
	}
	t.router.NoteHeld(builder, ids...)
}
