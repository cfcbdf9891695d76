package route

// Busy is how many leases are held on a builder; 0 for an unknown name.
func (r *Router) Busy(builder string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.byName[builder]; p != nil {
		return p.busy
	}
	return 0
}
