package policy

import (
	"cmp"
	"slices"
	"strings"
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
	rule          int // in Policy.BuildLimits
	at, principal *yaml.Node
}

// buildLimit reads one rule of build_limits.
func (d *decoder) buildLimit(n *yaml.Node) {
	var l BuildLimit
	values := d.mapping(n, "build_limits.",
		setting{"principal", func(n *yaml.Node) { l.Principal, _ = d.text(n) }},
		setting{"system", func(n *yaml.Node) { l.System, _ = d.checkedText(n, checkWord) }},
		setting{"name", func(n *yaml.Node) { l.Name, _ = d.checkedText(n, checkPattern) }},
		setting{"max_silent", func(n *yaml.Node) { d.durationInto(&l.MaxSilent, n, time.Second, maxBuildTime) }},
		setting{"timeout", func(n *yaml.Node) { d.durationInto(&l.Timeout, n, time.Second, maxBuildTime) }},
		setting{"max_log_size", func(n *yaml.Node) { d.sizeInto(&l.MaxLogSize, n, leastLogLimit) }},
		setting{"cores", func(n *yaml.Node) { l.Cores, _ = d.count(n, 1, maxCores) }},
	)
	if values == nil {
		return
	}
	limits := []string{"max_silent", "timeout", "max_log_size", "cores"}
	if !slices.ContainsFunc(limits, func(key string) bool { return values[key] != nil }) {
		d.mistake(n, "give it one of "+strings.Join(limits, ", "), "the rule sets no limit")
	}
	d.limited = append(d.limited, limited{len(d.pol.BuildLimits), n, values["principal"]})
	d.pol.BuildLimits = append(d.pol.BuildLimits, l)
}

// limitsCount refuses rules that could never count: for nobody, or behind others
// that set the same.
func (d *decoder) limitsCount() {
	for i, l := range d.limited {
		rule := &d.pol.BuildLimits[l.rule]
		if l.principal != nil && rule.Principal != "" {
			d.limitedPrincipal(l.principal, rule.Principal)
		}
		if first := d.hiddenBy(d.limited[:i], rule); first != nil {
			d.mistake(l.at, "put the rule for fewer builds first, or remove this one",
				"this rule never counts: the rule on line %d is for all of its builds and sets the same limits", first.Line)
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
		d.mistake(at, "use one of: "+orNone(known), "principal %s does not exist", quote(name))
	case d.pol.Principals[i].Role == RoleRead:
		d.mistake(at, "remove the rule", "principal %s has role read and builds nothing", quote(name))
	}
}

// hiddenBy returns where an earlier rule stands that leaves nothing to a later one;
// nil for none. A rule whose limits could not be read has none and is left alone.
func (d *decoder) hiddenBy(earlier []limited, rule *BuildLimit) *yaml.Node {
	if rule.isEmpty() {
		return nil
	}
	for _, e := range earlier {
		if first := &d.pol.BuildLimits[e.rule]; first.covers(rule) {
			rest := *rule
			rest.without(first)
			if rest.isEmpty() {
				return e.at
			}
		}
	}
	return nil
}

// covers says that a rule applies to all builds that another one applies to.
func (l *BuildLimit) covers(other *BuildLimit) bool {
	same := func(mine, its string) bool { return mine == "" || mine == its }
	return same(l.Principal, other.Principal) && same(l.System, other.System) && (same(l.Name, other.Name) || l.Name == "*")
}

// without takes from a rule what an earlier one sets.
func (l *BuildLimit) without(first *BuildLimit) {
	if first.MaxSilent != 0 {
		l.MaxSilent = 0
	}
	if first.Timeout != 0 {
		l.Timeout = 0
	}
	if first.MaxLogSize != 0 {
		l.MaxLogSize = 0
	}
	if first.Cores != 0 {
		l.Cores = 0
	}
}

func (l *BuildLimit) isEmpty() bool {
	return l.MaxSilent == 0 && l.Timeout == 0 && l.MaxLogSize == 0 && l.Cores == 0
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
