package route

// examine finds the builders of a lane's domain that match, and says of the
// others why not.
func (r *Router) examine(l *lane) {
	l.fits, l.misfits = nil, nil
	var unfit []Candidate
	for _, p := range r.places {
		if !p.serves(l.domain) {
			continue
		}
		if m := match(&p.Builder, l.system, l.features); !m.ok() {
			unfit = append(unfit, Candidate{Name: p.Name, State: Unfit, Reason: m.String()})
		} else if ex, excluded := l.exclusion(p.Name); excluded {
			l.misfits = append(l.misfits, Candidate{Name: p.Name, State: Excluded, Reason: withReason("excluded", ex.Reason)})
		} else {
			l.fits.add(p.index)
		}
	}
	l.misfits = append(l.misfits, unfit...)
}

// rank decides where a request of a lane goes now.
func (r *Router) rank(l *lane, req *Request) Decision {
	d := Decision{System: l.system, Features: l.features, Limit: l.principal.atLimitReason()}
	d.Candidates = r.candidates(l)
	r.paths.fillMissing(d.Candidates, req.Inputs)
	r.rule.Rank(req, d.Candidates)
	if d.Limit == "" && len(d.Candidates) > 0 && d.Candidates[0].State == Free {
		d.Builder = d.Candidates[0].Name
	}
	d.Candidates = append(d.Candidates, r.downOf(l)...)
	d.Candidates = append(d.Candidates, l.misfits...)
	return d
}

// candidates are the builders that match and are up, by name.
func (r *Router) candidates(l *lane) []Candidate {
	candidates := make([]Candidate, 0, len(r.places))
	for i, p := range r.places {
		if !l.fits.has(i) || !p.up() {
			continue
		}
		state := Busy
		if p.free() {
			state = Free
		}
		candidates = append(candidates, Candidate{
			Name: p.Name, State: state, Busy: p.busy, MaxJobs: p.MaxJobs, Speed: p.speed(l.system),
		})
	}
	return candidates
}

// downOf are the builders that match but are not up, by name.
func (r *Router) downOf(l *lane) []Candidate {
	var down []Candidate
	for i, p := range r.places {
		if l.fits.has(i) && !p.up() {
			down = append(down, Candidate{Name: p.Name, State: Down, Reason: p.trouble()})
		}
	}
	return down
}

// reasons says what is in the way at every builder of the lane's domain.
func (r *Router) reasons(l *lane) []BuilderReason {
	var reasons []BuilderReason
	for _, group := range [][]Candidate{r.candidates(l), r.downOf(l), l.misfits} {
		for i := range group {
			reasons = append(reasons, BuilderReason{Name: group[i].Name, Reason: group[i].reason()})
		}
	}
	return reasons
}

// Explain ranks a request as Acquire would at this moment, and takes nothing.
func (r *Router) Explain(req Request) Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	owner := principal{name: req.Principal, limit: req.PrincipalMaxJobs}
	if known := r.principals[req.Principal]; known != nil {
		owner.busy = known.busy
	}
	l := &lane{shape: req.shape(), principal: &owner}
	r.examine(l)
	return r.rank(l, &req)
}
