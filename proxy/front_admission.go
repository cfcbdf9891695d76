package proxy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// waitingRoom holds the connections that have not logged in yet. When it fills,
// somebody has to go, and it is hardly ever the newcomer: who has been at it for
// longer than any honest login takes goes first, then the source that has more
// than its share. So sockets that trickle bytes cost their owner places, not
// other people. OpenSSH's MaxStartups drops newcomers instead, which lets ten slow
// sockets turn away every third login.
type waitingRoom struct {
	limits Limits
	chance func() float64 // in [0, 1)

	mu      sync.Mutex           // guards what follows
	waiting []*waiter            // oldest first
	places  map[netip.Prefix]int // how many of them are of a source
}

type waiter struct {
	source netip.Prefix
	since  time.Time
	evict  func(reason string) // called without the lock
}

func newWaitingRoom(limits Limits) *waitingRoom {
	return &waitingRoom{limits: limits, chance: rand.Float64, places: map[netip.Prefix]int{}}
}

// enter lets a newcomer in, at the cost of somebody else if it must be, or
// reports false. The caller leaves when the login is through or failed; leaving
// twice is harmless.
func (r *waitingRoom) enter(w *waiter) bool {
	victim, ok := r.admit(w)
	if victim != nil {
		victim.evict("too slow while others waited to log in")
	}
	return ok
}

func (r *waitingRoom) admit(w *waiter) (victim *waiter, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	victim = r.victimFor(w)
	if victim == nil && len(r.waiting) >= r.limits.Pending {
		return nil, false
	}
	r.removeLocked(victim)
	r.waiting = append(r.waiting, w)
	r.places[w.source]++
	return victim, true
}

func (r *waitingRoom) victimFor(w *waiter) *waiter {
	if r.places[w.source] >= r.limits.PendingPerSource {
		if slow := r.slow(w, func(o *waiter) bool { return o.source == w.source }); slow != nil {
			return slow
		}
	}
	if r.chance() >= r.pressure() {
		return nil
	}
	if slow := r.slow(w, func(*waiter) bool { return true }); slow != nil {
		return slow
	}
	if len(r.waiting) < r.limits.Pending {
		return nil
	}
	return r.oldestOfCrowd(w)
}

// pressure is the chance that a newcomer pushes somebody out: none up to
// PendingStart, then from PendingRate rising to 1 when the room is full.
func (r *waitingRoom) pressure() float64 {
	n, start, full := len(r.waiting), r.limits.PendingStart, r.limits.Pending
	switch {
	case n >= full:
		return 1
	case n < start:
		return 0
	}
	least := float64(r.limits.PendingRate) / 100
	return least + (1-least)*float64(n-start)/float64(full-start)
}

// slow is a login that takes longer than an honest one does, of the source that has
// most places: on a machine that is busy, honest ones are slow as well. So none goes
// for a newcomer whose source has more places than its own.
func (r *waitingRoom) slow(newcomer *waiter, among func(*waiter) bool) *waiter {
	var slow *waiter
	most := max(0, r.places[newcomer.source]-1)
	for _, w := range r.waiting {
		if newcomer.since.Sub(w.since) < r.limits.SlowLogin {
			break // the rest is younger
		}
		if !among(w) {
			continue
		}
		if n := r.places[w.source]; n > most {
			slow, most = w, n
		}
	}
	return slow
}

// oldestOfCrowd belongs to the source with the most places, if that has more
// than its share and more than the newcomer's own: a crowd pushes nobody out.
func (r *waitingRoom) oldestOfCrowd(newcomer *waiter) *waiter {
	var crowd *waiter
	most := max(r.limits.PendingPerSource, r.places[newcomer.source])
	for _, w := range r.waiting {
		if n := r.places[w.source]; n > most {
			crowd, most = w, n
		}
	}
	return crowd
}

func (r *waitingRoom) leave(w *waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removeLocked(w)
}

func (r *waitingRoom) removeLocked(w *waiter) {
	if i := slices.Index(r.waiting, w); i >= 0 {
		r.waiting = slices.Delete(r.waiting, i, i+1)
		if r.places[w.source]--; r.places[w.source] == 0 {
			delete(r.places, w.source)
		}
	}
}
