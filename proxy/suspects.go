package proxy

import (
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nixbastion/internal/nix"
	"nixbastion/route"
)

const (
	// suspectAge is for how long a builder is avoided for a derivation whose session
	// there was not seen to end: what is left of it may hold the locks of the outputs,
	// on which the next build would wait without a word.
	suspectAge = 10 * time.Minute
	// maxSuspects bounds how many of these are remembered.
	maxSuspects = 1024
	// faultWindow is in what time several failures of a builder count as one: a
	// machine that goes down fails all its builds.
	faultWindow = 5 * time.Second
	// aftermath is for how long what a session of a builder that failed comes to is no
	// fault of its own: one on a machine that hangs is lost a minute later.
	aftermath = 2 * time.Minute
)

// suspects remember what builds went wrong where, for the builds that follow. It is
// safe for concurrent use.
type suspects struct {
	router *route.Router

	mu     sync.Mutex // guards what follows; not held while router is called
	stuck  *simplelru.LRU[suspect, time.Time]
	faults map[string]time.Time // the last one that counted, of each builder, within aftermath
}

// suspect is a derivation that may still hold locks on a builder.
type suspect struct {
	builder string
	drv     [20]byte
}

func newSuspects(router *route.Router) *suspects {
	stuck, err := simplelru.NewLRU[suspect, time.Time](maxSuspects, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &suspects{router: router, stuck: stuck, faults: map[string]time.Time{}}
}

// fault tells everybody's builds that a builder fails them, unless it did so within a
// window: faultWindow, or aftermath.
func (s *suspects) fault(builder, reason string, window time.Duration) {
	s.mu.Lock()
	now := time.Now()
	last, failed := s.faults[builder]
	again := failed && now.Sub(last) < window
	if !again {
		maps.DeleteFunc(s.faults, func(_ string, at time.Time) bool { return now.Sub(at) >= aftermath })
		s.faults[builder] = now
	}
	s.mu.Unlock()
	if !again {
		s.router.Fault(builder, reason)
	}
}

// unended keeps a derivation from a builder where a session for it was given up
// before it was seen to end.
func (s *suspects) unended(builder string, drv nix.StorePath) {
	s.mu.Lock()
	s.stuck.Add(suspect{builder, drv.HashBytes()}, time.Now().Add(suspectAge))
	s.mu.Unlock()
	s.fault(builder, "a session did not end after it was closed", aftermath)
}

// of returns the builders that are to be avoided for a derivation, of those that
// are named.
func (s *suspects) of(drv nix.StorePath, builders []string) []route.Exclusion {
	s.mu.Lock()
	defer s.mu.Unlock()
	var avoid []route.Exclusion
	for _, builder := range builders {
		key := suspect{builder, drv.HashBytes()}
		switch until, known := s.stuck.Peek(key); {
		case !known:
		case time.Now().Before(until):
			avoid = append(avoid, route.Exclusion{Builder: builder, Reason: "an earlier session for this derivation was not seen to end there"})
		default:
			s.stuck.Remove(key)
		}
	}
	return avoid
}
