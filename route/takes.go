package route

import "slices"

// Takes returns, sorted, the names of a domain's builders that take builds now: those
// that are neither down, drained, suspended, overloaded nor asleep. Their slots may
// all be taken.
func (r *Router) Takes(domain string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, p := range r.places {
		if slices.Contains(p.Domains, domain) && p.up() && !p.asleep {
			names = append(names, p.Name)
		}
	}
	return names
}
