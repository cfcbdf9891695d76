package simulate

import (
	"fmt"
	"slices"
	"time"
)

// builtin is the system of derivations that Nix itself carries out: every machine
// runs them.
const builtin = "builtin"

// Trace is what is wanted, by whom and when, and who can build it.
type Trace struct {
	Machines []Machine
	// Builds are the distinct derivations. Each stands after those it depends on.
	Builds  []Build
	Clients []Client
}

// Machine is a builder.
type Machine struct {
	Name string
	// Systems has the speed of each system as a factor to Speed.
	Systems             map[string]float64
	Features, Mandatory []string
	// Domains are those that may use it; none means all.
	Domains []string
	Slots   int
	// Speed divides the time that a build takes; 1 is usual.
	Speed float64
	// Link is what comes in and goes out, in bytes per second, each way.
	Link float64
}

// Build is a derivation.
type Build struct {
	Name     string
	System   string
	Features []string
	// Domain is whose machines may be used.
	Domain string
	// Work is how long it takes at speed 1.
	Work time.Duration
	// Estimate is what earlier builds of this name took at speed 1; 0 if there
	// were none.
	Estimate time.Duration
	// Deps are the indexes of the builds whose outputs it needs.
	Deps []int
	// Sources are its other inputs.
	Sources []Source
	// Output is the size of what it makes, in bytes.
	Output int64
}

// Source is a path that nobody builds.
type Source struct {
	Path string
	Size int64 // of its NAR, in bytes
}

// Client is a host that wants builds, for one principal.
type Client struct {
	Name string
	// Asks has each build once.
	Asks []Ask
}

// Ask is the wish for one build.
type Ask struct {
	Build int
	At    time.Duration
}

// Wanted is how many builds all clients together ask for.
func (t *Trace) Wanted() int {
	n := 0
	for _, c := range t.Clients {
		n += len(c.Asks)
	}
	return n
}

// Distinct is how many different builds are asked for.
func (t *Trace) Distinct() int {
	n := 0
	for _, w := range t.wanted() {
		if w {
			n++
		}
	}
	return n
}

func (t *Trace) wanted() []bool {
	wanted := make([]bool, len(t.Builds))
	for _, c := range t.Clients {
		for _, ask := range c.Asks {
			wanted[ask.Build] = true
		}
	}
	return wanted
}

// speed is how fast the machine carries out builds of a system.
func (m *Machine) speed(system string) float64 {
	if factor := m.Systems[system]; factor > 0 {
		return m.Speed * factor
	}
	return m.Speed
}

// takes is how long the machine needs for a build once it has the inputs.
func (m *Machine) takes(b *Build) time.Duration {
	return time.Duration(float64(b.Work) / m.speed(b.System))
}

// fits is Nix's own rule: system, required features and mandatory features.
func (m *Machine) fits(b *Build) bool {
	if _, listed := m.Systems[b.System]; !listed && b.System != builtin {
		return false
	}
	if len(m.Domains) > 0 && !slices.Contains(m.Domains, b.Domain) {
		return false
	}
	for _, f := range b.Features {
		if !slices.Contains(m.Features, f) && !slices.Contains(m.Mandatory, f) {
			return false
		}
	}
	for _, f := range m.Mandatory {
		if !slices.Contains(b.Features, f) {
			return false
		}
	}
	return m.Slots > 0
}

func (t *Trace) fitting(b *Build) []int {
	var fit []int
	for i := range t.Machines {
		if t.Machines[i].fits(b) {
			fit = append(fit, i)
		}
	}
	return fit
}

// check finds the wanted build that no machine fits.
func (t *Trace) check() error {
	for i, w := range t.wanted() {
		if b := &t.Builds[i]; w && len(t.fitting(b)) == 0 {
			return fmt.Errorf("no builder can run %s: a '%s' with features %q is required", b.Name, b.System, b.Features)
		}
	}
	return nil
}
