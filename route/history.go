package route

import (
	"cmp"
	"math"
	"slices"
)

// History is what a router has learned, to be kept over restarts. It has plain
// values, and what makes no sense in it is passed over: it may come from a file.
type History struct {
	Jobs     []JobHistory     `json:"jobs,omitempty"`
	Builders []BuilderHistory `json:"builders,omitempty"`
}

// JobHistory is how long builds of one name took.
type JobHistory struct {
	// Job is a [JobName].
	Job     string            `json:"job"`
	Systems []DurationHistory `json:"systems,omitempty"`
	// Inputs are the jobs whose outputs it had as inputs.
	Inputs []string `json:"inputs,omitempty"`
}

// DurationHistory is the mean duration of builds.
type DurationHistory struct {
	System string `json:"system"`
	// Seconds are those of a builder of speed 1.
	Seconds float64 `json:"seconds"`
	Builds  int     `json:"builds"`
}

// BuilderHistory is what was learned of a builder.
type BuilderHistory struct {
	Builder string `json:"builder"`
	// Bandwidth towards it, in bytes a second; 0 if nothing was measured.
	Bandwidth float64 `json:"bandwidth,omitempty"`
	// Speed is its real speed by the configured one, learned from Builds builds.
	Speed  float64 `json:"speed,omitempty"`
	Builds int     `json:"builds,omitempty"`
}

// History returns what the router has learned, the jobs that were asked for longest
// ago first.
func (r *Router) History() History {
	r.mu.Lock()
	builders := make([]BuilderHistory, 0, len(r.paces))
	for name, p := range r.paces {
		builders = append(builders, BuilderHistory{Builder: name, Bandwidth: p.bandwidth, Speed: p.factor(), Builds: p.builds})
	}
	r.mu.Unlock()
	slices.SortFunc(builders, func(a, b BuilderHistory) int { return cmp.Compare(a.Builder, b.Builder) })
	return History{Jobs: r.estimates.history(), Builders: builders}
}

func (e *estimates) history() []JobHistory {
	e.mu.Lock()
	defer e.mu.Unlock()
	inputs := map[*job][]string{}
	for _, name := range e.jobs.Keys() {
		j, _ := e.jobs.Peek(name)
		for _, f := range j.followers {
			inputs[f] = append(inputs[f], name)
		}
	}
	jobs := make([]JobHistory, 0, e.jobs.Len())
	for _, name := range e.jobs.Keys() {
		j, _ := e.jobs.Peek(name)
		h := JobHistory{Job: name, Inputs: inputs[j]}
		for _, d := range j.bySystem {
			h.Systems = append(h.Systems, DurationHistory{System: d.system, Seconds: d.seconds, Builds: d.builds})
		}
		jobs = append(jobs, h)
	}
	return jobs
}

// restore takes what an earlier router has learned.
func (r *Router) restore(h History) {
	for _, b := range h.Builders[:min(len(h.Builders), paceCount)] {
		p := &pace{builds: max(b.Builds, 0)}
		if sensible(b.Bandwidth) {
			p.bandwidth = b.Bandwidth
		}
		if sensible(b.Speed) && b.Speed >= 1./paceLimit && b.Speed <= paceLimit {
			p.logSpeed = math.Log(b.Speed)
		}
		r.paces[b.Builder] = p
	}
	for _, j := range h.Jobs {
		for _, d := range j.Systems[:min(len(j.Systems), systemLimit)] {
			if sensible(d.Seconds) && d.Builds > 0 {
				r.estimates.restore(j.Job, d)
			}
		}
		r.estimates.learnInputs(j.Job, j.Inputs)
	}
}

// paceCount is of how many builders a history is believed.
const paceCount = 10_000

func sensible(f float64) bool { return f > 0 && !math.IsInf(f, 0) && !math.IsNaN(f) }

func (e *estimates) restore(name string, d DurationHistory) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.learnGuess(max(d.Seconds, least))
	j := e.job(name)
	j.all.add(d.Seconds)
	j.all.builds = d.Builds
	if j.system(d.System) < 0 {
		j.bySystem = append(j.bySystem, duration{system: d.System, seconds: max(d.Seconds, least), builds: d.Builds})
	}
}
