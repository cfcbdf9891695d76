package route

import (
	"cmp"
	"slices"
	"strings"
)

// Rule is the choice among the builders that match a request and are up.
//
// It runs under the router's lock: it must depend on its arguments alone, be
// quick, and not call the router.
type Rule interface {
	// Rank sorts candidates, best first, and sets the Score of each, of which
	// less is better. The State of each is Free or Busy. The request gets a place
	// on the first one if that is Free; if it is Busy the request waits and is
	// ranked again when something has changed.
	Rank(req *Request, candidates []Candidate)
}

// LeastLoad prefers a free builder, then the least load for its speed, then the
// fewest bytes to bring there, then the name.
//
// Load counts the build that is to be placed: (busy + 1) / speed. Nix counts
// busy / speed, which is 0 for every idle builder whatever its speed, and so
// needs the speed once more to break the tie. Counted this way a builder of
// speed 2 runs two builds for each one that a builder of speed 1 runs.
type LeastLoad struct{}

// Rank implements [Rule].
func (LeastLoad) Rank(_ *Request, candidates []Candidate) {
	for i := range candidates {
		c := &candidates[i]
		c.Score = float64(c.Busy+1) / c.Speed
	}
	slices.SortFunc(candidates, func(a, b Candidate) int {
		return cmp.Or(
			cmp.Compare(a.State, b.State),
			cmp.Compare(a.Score, b.Score),
			cmp.Compare(a.Missing, b.Missing),
			strings.Compare(a.Name, b.Name),
		)
	})
}
