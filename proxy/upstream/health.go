package upstream

import (
	"errors"
	"math/rand/v2"
	"time"
)

// health is whether a builder works. The builder's mutex guards it.
type health struct {
	down  bool
	err   error // the last failure
	until time.Time
	fails uint // in a row
	retry *time.Timer
}

// rest notes a failure and returns for how long the builder is left alone.
func (h *health) rest(opts *Options, now time.Time, err error) time.Duration {
	pause := min(opts.BackOffMin<<min(h.fails, 16), opts.BackOffMax)
	pause += time.Duration((rand.Float64() - 0.5) / 2 * float64(pause)) // a quarter to either side
	h.down, h.err, h.until = true, err, now.Add(pause)
	h.fails++
	return pause
}

// refusal is the answer while the builder is left alone, else nil.
func (h *health) refusal(now time.Time) error {
	if !h.down || !now.Before(h.until) {
		return nil
	}
	var known *Error
	if !errors.As(h.err, &known) {
		return h.err
	}
	refusal := *known
	refusal.Until = h.until
	return &refusal
}

func (h *health) stopRetry() {
	if h.retry != nil {
		h.retry.Stop()
	}
}

// noteOutcome makes a builder up or down by what came of trying to get a
// session. A builder that is down is tried again by itself, since nobody sends
// it builds.
func (b *builder) noteOutcome(err error) {
	var fault *Error
	if err != nil && !errors.As(err, &fault) {
		return // the caller's own time was up
	}
	if err != nil && fault.Kind == Unreachable && b.fellAsleep() {
		return
	}
	b.mu.Lock()
	switch now := time.Now(); {
	case err == nil:
		b.health.stopRetry()
		b.cameUp(b.health.down)
		b.health = health{}
	case b.retired || b.health.refusal(now) != nil: // counted already
	default:
		pause := b.health.rest(&b.pool.opts, now, err)
		b.health.retry = time.AfterFunc(pause, func() { b.pool.spawn(b.recover) })
	}
	b.mu.Unlock()
	b.report()
}

// recover tries whether a builder that is down works again.
func (b *builder) recover() {
	b.mu.Lock()
	due := b.health.down && !b.retired && !b.rest.spared()
	b.mu.Unlock()
	if !due {
		return
	}
	d, err := b.open(b.pool.ctx, false)
	b.noteOutcome(err)
	if err == nil {
		b.park(d)
	}
}

// report tells the owner of the pool when the builder's state, or the reason for
// it, has changed since the last report.
func (b *builder) report() {
	b.reporting.Lock()
	defer b.reporting.Unlock()
	b.mu.Lock()
	down, err, retired := b.health.down, b.health.err, b.retired
	b.mu.Unlock()
	reason := ""
	if down {
		reason = reasonOf(err)
	}
	if retired || down == b.reportedDown && reason == b.reportedReason {
		return
	}
	b.reportedDown, b.reportedReason = down, reason
	if down {
		b.log.Warn("builder is down", "reason", err.Error())
	} else {
		b.log.Info("builder is up")
	}
	var fault *Error
	if down && errors.As(err, &fault) && fault.Kind == HostKey {
		b.pool.opts.OnHostKey(b.target.name, reason)
	}
	b.pool.opts.OnState(b.target.name, !down, reason)
}

func reasonOf(err error) string {
	var fault *Error
	if errors.As(err, &fault) {
		return fault.Reason()
	}
	return err.Error()
}
