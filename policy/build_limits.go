package policy

import (
	"cmp"
	"slices"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	maxBuildTime  = 8760 * time.Hour // a year: no limit, for what would have one by a later rule
	leastLogLimit = 1 << 10
	maxCores      = 10_000
)

// limited is where a rule of build_limits stands.
type limited struct {
	rule   int // in Policy.BuildLimits
	at     *yaml.Node
	values map[string]*yaml.Node
	sound  bool // it says what its author meant, as far as it goes
}

// buildLimitKey is the key of a limit.
type buildLimitKey struct {
	key string
	set func(*BuildLimit) bool // whether a rule says something of it
}

var buildLimits = []buildLimitKey{
	{"max_silent", func(l *BuildLimit) bool { return l.MaxSilent != 0 }},
	{"timeout", func(l *BuildLimit) bool { return l.Timeout != 0 }},
	{"max_log_size", func(l *BuildLimit) bool { return l.MaxLogSize != 0 }},
	{"cores", func(l *BuildLimit) bool { return l.Cores != 0 }},
}

// buildLimit reads one rule of build_limits.
func (d *decoder) buildLimit(n *yaml.Node) {
	var l BuildLimit
	before := d.mistakes.count()
	values := d.mapping(n, "build_limits.",
		setting{"principal", func(n *yaml.Node) { l.Principal, _ = d.text(n) }},
		setting{"system", func(n *yaml.Node) { l.System, _ = d.checkedText(n, checkWord) }},
		setting{"name", func(n *yaml.Node) { l.Name, _ = d.checkedText(n, checkPattern) }},
		setting{"max_silent", func(n *yaml.Node) { d.durationInto(&l.MaxSilent, n, time.Second, maxBuildTime) }},
		setting{"timeout", func(n *yaml.Node) { d.durationInto(&l.Timeout, n, time.Second, maxBuildTime) }},
		setting{"max_log_size", func(n *yaml.Node) { d.sizeInto(&l.MaxLogSize, n, leastLogLimit) }},
		setting{"cores", func(n *yaml.Node) { l.Cores, _ = d.count(n, 1, maxCores) }},
	)
	sound := d.mistakes.count() == before
	if sound && !slices.ContainsFunc(buildLimits, func(limit buildLimitKey) bool { return limit.set(&l) }) {
		d.mistake(n, "give it one of max_silent, timeout, max_log_size, cores", "the rule sets no limit")
	}
	d.limited = append(d.limited, limited{len(d.pol.BuildLimits), n, values, sound})
	d.pol.BuildLimits = append(d.pol.BuildLimits, l)
}

// limitsCount refuses what could never count: rules for nobody, and limits behind
// others that leave nothing to them.
func (d *decoder) limitsCount() {
	for i, l := range d.limited {
		rule := &d.pol.BuildLimits[l.rule]
		if at := l.values["principal"]; at != nil && rule.Principal != "" {
			d.limitedPrincipal(at, rule.Principal)
		}
		if l.sound {
			d.hiddenLimits(d.limited[:i], l.values, rule)
		}
	}
}

func (d *decoder) limitedPrincipal(at *yaml.Node, name string) {
	i := slices.IndexFunc(d.pol.Principals, func(p Principal) bool { return p.Name == name })
	switch {
	case i < 0:
		var known []string
		for _, p := range d.pol.Principals {
			known = append(known, p.Name)
		}
		d.mistake(at, "add it to principals"+orOneOf(known), "principal %s does not exist", quote(name))
	case d.pol.Principals[i].Role == RoleRead:
		d.mistake(at, "remove the rule", "principal %s has role read and builds nothing", quote(name))
	}
}

// hiddenLimits notes which limits of a rule an earlier rule sets for all of its
// builds.
func (d *decoder) hiddenLimits(earlier []limited, values map[string]*yaml.Node, rule *BuildLimit) {
	for _, limit := range buildLimits {
		if !limit.set(rule) {
			continue
		}
		first := slices.IndexFunc(earlier, func(e limited) bool {
			other := &d.pol.BuildLimits[e.rule]
			return e.sound && limit.set(other) && other.covers(rule)
		})
		if first >= 0 {
			d.mistake(values[limit.key], "put the rule for fewer builds first, or remove the limit here",
				"%q never counts here: the rule %s sets it for all of these builds", limit.key, d.at(earlier[first].at, values[limit.key]))
		}
	}
}

// covers says that a rule applies to all builds that another one applies to.
func (l *BuildLimit) covers(other *BuildLimit) bool {
	same := func(mine, its string) bool { return mine == "" || mine == its }
	// A "*" of the other pattern can only be in a "*" of ours, whatever text it stands
	// for; without a pattern there is nothing but a "*" that matches.
	return same(l.Principal, other.Principal) && same(l.System, other.System) && (l.Name == "" || MatchName(l.Name, other.Name))
}

// LimitsOf returns the limits of a build of a principal: for each the first rule that
// applies and sets it. A limit of 0 is none; Principal, System and Name are empty.
// The name is that of the derivation without hash and .drv.
func (p *Policy) LimitsOf(principal, system, name string) BuildLimit {
	var all BuildLimit
	for i := range p.BuildLimits {
		if rule := &p.BuildLimits[i]; rule.appliesTo(principal, system, name) {
			all.MaxSilent = cmp.Or(all.MaxSilent, rule.MaxSilent)
			all.Timeout = cmp.Or(all.Timeout, rule.Timeout)
			all.MaxLogSize = cmp.Or(all.MaxLogSize, rule.MaxLogSize)
			all.Cores = cmp.Or(all.Cores, rule.Cores)
		}
	}
	return all
}

func (l *BuildLimit) appliesTo(principal, system, name string) bool {
	return (l.Principal == "" || l.Principal == principal) && (l.System == "" || l.System == system) &&
		(l.Name == "" || MatchName(l.Name, name))
}
