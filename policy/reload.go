package policy

import (
	"slices"

	"gopkg.in/yaml.v3"
)

// Reload says how a changed policy gets into force while the proxy runs.
type Reload struct {
	// Watch has the proxy load the policy by itself when it, or a file that it names, has
	// changed.
	Watch bool
	// RunningBuilds says what becomes of builds that run for a key which the new
	// policy does not let in any more.
	RunningBuilds RunningBuilds
}

// RunningBuilds says what becomes of the builds of those who are not let in any
// more. The zero value is the strict one.
type RunningBuilds int

const (
	// EndRunningBuilds ends them with the connection that asked for them.
	EndRunningBuilds RunningBuilds = iota
	// FinishRunningBuilds lets them come to their end and their outputs be fetched;
	// nothing else works on the connection meanwhile. A revoked key has no such
	// time.
	FinishRunningBuilds
)

var runningBuildsWords = map[string]RunningBuilds{"end": EndRunningBuilds, "finish": FinishRunningBuilds}

func (d *decoder) reload(n *yaml.Node) {
	r := &d.pol.Reload
	d.mapping(n, "reload.",
		setting{"watch", func(n *yaml.Node) { r.Watch, _ = d.truth(n) }},
		setting{"running_builds", func(n *yaml.Node) {
			r.RunningBuilds, _ = choice(d, n, runningBuildsWords)
		}},
	)
}

// reloads describes how changes of the policy get into force.
func (t *description) reloads(r Reload) {
	how := "at `nixbastion reload` or SIGHUP"
	if r.Watch {
		how = "by itself a moment after it or a file that it names was changed, and at `nixbastion reload` or SIGHUP"
	}
	t.line(0, "A changed policy is loaded %s.", how)
	becomes := "end at once"
	if r.RunningBuilds == FinishRunningBuilds {
		becomes = "come to their end, unless the key is revoked"
	}
	t.line(0, "Builds of keys that it does not let in any more %s.", becomes)
}

// PrincipalNamed returns the principal of a name, nil if there is none.
func (p *Policy) PrincipalNamed(name string) *Principal {
	if i := slices.IndexFunc(p.Principals, func(q Principal) bool { return q.Name == name }); i >= 0 {
		return &p.Principals[i]
	}
	return nil
}
