package proxy

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// attempt is one order on one builder.
type attempt struct {
	*tries
	lease *route.Lease
	log   *attemptLog
	began time.Time
	step  atomic.Int32 // of steps

	// seconds is how long the build took, at speed 1; 0 if it did not.
	seconds float64
	// proven says that what it built is proven.
	proven bool
	// left is a session that is to be ended; nil if there is none.
	left *upstream.Session
	// copied ends the counting among copies; nil if it does not count there.
	copied func()

	// hung says that the builder owes a sign of life, and hungOnce that it did. They
	// belong to the goroutine of tries.run.
	hung, hungOnce bool
}

// steps are the parts of an attempt, for the log.
var steps = [...]string{"connect", "inputs", "build", "outputs"}

const (
	stepConnect = iota
	stepInputs
	stepBuild
	stepOutputs
)

func (t *tries) newAttempt(lease *route.Lease) *attempt {
	return &attempt{tries: t, lease: lease, log: newAttemptLog(t.log, lease.Builder(), &t.activity), began: time.Now()}
}

func (t *attempt) phase() string { return steps[t.step.Load()] }

// run has the order built. A builder that has lost an input meanwhile, to its garbage
// collector, is sent it once more. Call finish afterwards.
func (t *attempt) run(ctx context.Context) outcome {
	out := t.once(ctx)
	if out.blame != blameInput || ctx.Err() != nil {
		return out
	}
	t.order.log.Warn("builder lost an input", "builder", t.lease.Builder(), "drv", t.order.drvPath.String(), "reason", out.reason)
	nix.Line(t.log, fmt.Sprintf("builder '%s': %s; sending it again", t.lease.Builder(), out.reason))
	t.endLeft(ctx)
	return t.once(ctx)
}

// finish ends what is left of the attempt. The slot is free when the builder has
// replied in good order, and otherwise only now, when its session was seen to end or
// its connection was given up.
func (t *attempt) finish(ctx context.Context) {
	t.endLeft(ctx)
	t.lease.Release()
	if t.copied != nil {
		t.copied()
	}
}

func (t *attempt) endLeft(ctx context.Context) {
	if t.left != nil {
		t.end(ctx, t.left)
		t.left = nil
	}
}

// once brings the inputs, builds and takes the outputs, on one session.
func (t *attempt) once(ctx context.Context) (out outcome) {
	t.step.Store(stepConnect)
	sess, err := t.session(ctx, t.lease.Builder())
	if err != nil {
		return outcome{blame: blameNobody, err: err, reason: brief(userText(err))}
	}
	t.left = sess
	watch := t.watchFor(sess)
	defer watch.stop()
	defer func() {
		// What one builder sends must not take everybody else's builds with it.
		if p := recover(); p != nil {
			out = t.erred(t.panicked(p), sess)
		}
	}()
	result, err := t.buildOn(ctx, sess)
	if err != nil {
		return t.erred(err, sess)
	}
	return t.reply(ctx, sess, result)
}

// erred judges an error of a session.
func (t *attempt) erred(err error, sess *upstream.Session) outcome {
	if failure := t.answer(err); failure != nil {
		return outcome{blame: blameBuild, result: failure, err: err}
	}
	otherwise := blameMatch
	if t.step.Load() == stepBuild {
		otherwise = blameBuild
	}
	out := t.order.erred(err, otherwise)
	var fault *upstream.Error
	out.stale = errors.As(err, &fault) && fault.Kind == upstream.Lost && sess.Stale()
	if out.blame == blameInput && t.step.Load() == stepOutputs {
		out.blame = blameBuilder
	}
	return out
}

// reply takes what a builder replied.
func (t *attempt) reply(ctx context.Context, sess *upstream.Session, result *nix.BuildResult) outcome {
	switch out := t.order.failed(result); {
	case result.Status.Success():
	case out.blame == blameBuild || out.blame == blameDoubt:
		if out.blame == blameBuild {
			t.lease.Worked()
		}
		t.lease.Release()
		t.giveBack(sess)
		return out
	default:
		return out
	}
	t.step.Store(stepOutputs)
	t.copied = t.copies.begin(t.lease.Builder()) // before the slot is free, so that it is among one or the other
	t.noteBuilt(result)
	if result.Status == nix.StatusBuilt {
		t.seconds = t.lease.Built()
	}
	t.lease.Release()
	if t.order.mode == nix.BuildCheck { // which leaves everything as it was
		t.giveBack(sess)
		result.Outputs = builtOutputs(t.order.drv)
		return outcome{result: result}
	}
	result, err := t.takeOutputs(ctx, sess, result)
	if err != nil {
		return t.erred(err, sess)
	}
	return outcome{result: result}
}

// giveBack lets others have the session.
func (t *attempt) giveBack(sess *upstream.Session) {
	t.left = nil
	sess.Release()
}

// end closes a session that is not to be used again and waits for its end.
func (t *tries) end(ctx context.Context, sess *upstream.Session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := sess.End(ctx); err != nil {
		t.order.log.Warn("builder's session did not end in order", "builder", sess.Builder(), "error", err)
		t.suspects.unended(sess.Builder(), t.order.drvPath)
	}
}
