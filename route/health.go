package route

import "time"

// SetUp says whether a builder can be reached, and if not why, for people. A new
// builder counts as up. Leases there are not touched. An unknown name is ignored.
func (r *Router) SetUp(builder string, up bool, reason string) {
	r.setHealth(builder, func(h *health) {
		h.down, h.downReason = !up, reason
		if up {
			h.downReason = ""
		}
	})
}

// Suspend keeps new builds from a builder until a time, and says why, for people.
// A time that is not in the future ends a suspension. An unknown name is ignored.
func (r *Router) Suspend(builder, reason string, until time.Time) {
	r.setHealth(builder, func(h *health) { h.until, h.suspendReason = until, reason })
}

// Drain keeps new builds from a builder until Undrain, and says why, for people: an
// empty reason is "by the admin". Leases there are not touched, and requests that no
// other builder matches do not wait for it. An unknown name is ignored.
func (r *Router) Drain(builder, reason string) {
	if reason == "" {
		reason = "by the admin"
	}
	r.setHealth(builder, func(h *health) { h.drained = reason })
}

// Undrain ends what Drain began.
func (r *Router) Undrain(builder string) {
	r.setHealth(builder, func(h *health) { h.drained = "" })
}

// SetOverloaded keeps new builds from a builder that is busy with other work, and
// says why, for people; an empty reason ends it. Requests wait for it meanwhile. An
// unknown name is ignored.
func (r *Router) SetOverloaded(builder, reason string) {
	r.setHealth(builder, func(h *health) { h.overloaded = reason })
}

// SetAsleep says that a builder is asleep and takes so long to wake, or that it is
// awake. It gets builds all the same where that pays: whoever holds the lease wakes
// it. An unknown name is ignored.
func (r *Router) SetAsleep(builder string, asleep bool, wake time.Duration) {
	r.setHealth(builder, func(h *health) { h.asleep, h.wake = asleep, wake })
}

func (r *Router) setHealth(builder string, set func(*health)) {
	r.lock()
	defer r.unlock()
	p := r.byName[builder]
	if p == nil || p.removed() {
		return
	}
	before := p.health
	set(&p.health)
	if p.health != before {
		r.noteHealth(p)
		r.settle()
	}
}

func (r *Router) noteHealth(p *place) {
	r.noteState(p)
	r.unsettled = true
	r.stirred.add(p.index)
}

func (r *Router) endSuspensions(now time.Time) {
	for _, p := range r.places {
		if !p.until.IsZero() && !p.until.After(now) {
			p.until, p.suspendReason = time.Time{}, ""
			r.noteHealth(p)
		}
	}
}

// Recheck does what has become due: it ends suspensions and the wait of requests
// whose patience is over, and plans anew where a build takes longer than thought. The
// router calls it itself unless Options.Now is set.
func (r *Router) Recheck() {
	r.lock()
	defer r.unlock()
	r.wakeAt = time.Time{}
	r.settle()
}

// NextDue is when Recheck has something to do; zero if that depends on others alone.
func (r *Router) NextDue() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nextDue()
}

// arm sets the timer to what is due next.
func (r *Router) arm(now time.Time) {
	if r.virtual {
		return
	}
	due := r.nextDue()
	if due.Equal(r.wakeAt) {
		return
	}
	if r.timer != nil {
		r.timer.Stop()
	}
	r.wakeAt = due
	if !due.IsZero() {
		r.timer = time.AfterFunc(due.Sub(now), r.Recheck)
	}
}

// nextDue is when Recheck has something to do, zero if never.
func (r *Router) nextDue() time.Time {
	due := r.planAt
	sooner := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	for _, p := range r.places {
		if !p.until.IsZero() {
			sooner(p.until)
		}
	}
	for l := range r.hopeless {
		for _, w := range l.waiters {
			sooner(w.whole().deadline(l))
		}
	}
	return due
}
