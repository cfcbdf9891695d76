package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// addRefusals says how many were turned away since the start: for the admin alone.
func (s *statusAnswer) addRefusals(a *asker, counts map[Refusal]uint64) {
	if a.client == nil && len(counts) > 0 {
		s.Refusals = counts
	}
}

func (s *statusAnswer) printRefusals(page *page) {
	if len(s.Refusals) == 0 {
		return
	}
	var all []string
	for _, why := range slices.Sorted(maps.Keys(s.Refusals)) {
		all = append(all, fmt.Sprintf("%s %d", why, s.Refusals[why]))
	}
	page.line("\nTurned away or made to wait since the start: %s", strings.Join(all, ", "))
}
