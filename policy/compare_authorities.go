package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// lineOf is the line that lists a name of certificates.
type lineOf struct {
	*grant
	at int // among those of its principal
}

// namesByAuthority has the lines of names, by the fingerprint of their authority.
func namesByAuthority(grants []*grant) map[string]map[string]lineOf {
	all := map[string]map[string]lineOf{}
	for i, g := range grants {
		for _, name := range g.principals {
			if all[g.fingerprint] == nil {
				all[g.fingerprint] = map[string]lineOf{}
			}
			all[g.fingerprint][name] = lineOf{g, i}
		}
	}
	return all
}

// orders compares the order of an authority's lines, where it decides what certificates
// with several names get.
func (c *comparison) orders(q *Principal, old, next map[string]map[string]lineOf) {
	for _, authority := range slices.Sorted(maps.Keys(next)) {
		names := reordered(old[authority], next[authority])
		for i, name := range names {
			names[i] = unquoted(name)
		}
		if len(names) > 0 {
			c.add(AreaAccess, Changes, q.subject(), "has its lines of authority %s in another order: of a certificate with several names the first line counts that lets it in, here for %s",
				authority, strings.Join(names, ", "))
		}
	}
}

// reordered returns the names whose lines are narrowed in different ways and stand the
// other way round, in the order in which they are now.
func reordered(old, next map[string]lineOf) []string {
	found := map[string]bool{}
	for a, was := range old {
		is, still := next[a]
		for b, other := range next {
			before, both := old[b]
			if still && both && was.at < before.at && is.at > other.at && is.narrowingText() != other.narrowingText() {
				found[a], found[b] = true, true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b string) int {
		return cmp.Or(next[a].at-next[b].at, strings.Compare(a, b))
	})
}
