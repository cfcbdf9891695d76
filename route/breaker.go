package route

import (
	"math"
	"time"
)

const (
	// faultHalfLife is how long it takes until half of a builder's faults are
	// forgotten.
	faultHalfLife = 2 * time.Minute
	// firstPause is how long a builder is left alone after a fault. Each further one
	// that is not forgotten triples that, up to longestPause.
	firstPause   = 5 * time.Second
	longestPause = 5 * time.Minute
)

// breaker keeps builds from a builder that failed some. When its pause is over, one
// build at a time tries the builder until one went well, which makes up for half of
// the faults. Guarded by Router.mu.
type breaker struct {
	// faults decay; that is their number at the time at.
	faults float64
	at     time.Time
	// trial says that the builder must prove itself, and trying that a lease does
	// so.
	trial, trying bool
}

// weight is what is left of the faults.
func (b *breaker) weight(now time.Time) float64 {
	if b.faults == 0 {
		return 0
	}
	return b.faults * math.Exp2(-float64(now.Sub(b.at))/float64(faultHalfLife))
}

// fault counts one and returns for how long the builder is left alone.
func (b *breaker) fault(now time.Time) time.Duration {
	b.faults, b.at, b.trial = b.weight(now)+1, now, true
	pause := float64(firstPause) * math.Pow(3, b.faults-1)
	return time.Duration(min(pause, float64(longestPause)))
}

// Pardon forgets the faults of a builder and ends its suspension: somebody has seen to
// it. An unknown name is ignored.
func (r *Router) Pardon(builder string) {
	r.setHealth(builder, func(h *health) {
		h.breaker = breaker{}
		h.until, h.suspendReason = time.Time{}, ""
	})
}

// Fault says that a builder failed a build through no fault of the build, and why,
// for people. It gets no builds for a while, which grows with the number of faults
// of the last minutes, and then one at a time until [Lease.Built] or
// [Lease.Worked]. An unknown name
// is ignored.
func (r *Router) Fault(builder, reason string) {
	now := r.now()
	r.setHealth(builder, func(h *health) {
		if until := now.Add(h.breaker.fault(now)); until.After(h.until) {
			h.until, h.suspendReason = until, reason
		}
	})
}
