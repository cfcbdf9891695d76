package policy

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	// maxAmount bounds amounts of resources, so that sums of them stay numbers.
	maxAmount = 1_000_000_000_000
	// maxRules bounds needs and build limits: each build looks at all of them.
	maxRules = 1000
)

// needed is where a rule asks for an amount of a resource; 0 is one that the build
// itself says.
type needed struct {
	resource string
	amount   int64
	at       *yaml.Node
}

// rules reads a list of rules.
func (d *decoder) rules(n *yaml.Node, visit func(*yaml.Node)) {
	if n.Kind == yaml.SequenceNode && len(n.Content) > maxRules {
		d.mistake(n.Content[maxRules], `join some of them by patterns with "*"`, "there are more than %d rules", maxRules)
		return
	}
	d.list(n, visit)
}

// need reads one rule of scheduling.needs.
func (d *decoder) need(n *yaml.Node) {
	var rule Need
	values := d.mapping(n, "scheduling.needs.",
		setting{"feature", func(n *yaml.Node) { rule.Feature, _ = d.checkedText(n, checkWord) }},
		setting{"name", func(n *yaml.Node) { rule.Name, _ = d.checkedText(n, checkPattern) }},
		setting{"attribute", func(n *yaml.Node) { rule.Attribute, _ = d.checkedText(n, checkAttribute) }},
		setting{"value", func(n *yaml.Node) { rule.Value, _ = d.text(n) }},
		setting{"resources", func(n *yaml.Node) { rule.Resources = d.neededResources(n) }},
		setting{"amount_of", func(n *yaml.Node) {
			rule.AmountOf, _ = d.checkedText(n, checkName)
			d.needed = append(d.needed, needed{rule.AmountOf, 0, n})
		}},
	)
	if values != nil {
		d.completeNeed(n, values)
	}
	d.pol.Scheduling.Needs = append(d.pol.Scheduling.Needs, rule)
}

// completeNeed looks whether a rule says for what and how much.
func (d *decoder) completeNeed(n *yaml.Node, values map[string]*yaml.Node) {
	if values["feature"] == nil && values["name"] == nil && values["attribute"] == nil {
		d.mistake(n, `say which builds: feature: kvm, name: "chromium-*" or attribute: memGiB; name: "*" is all of them`,
			"the rule has none of %q, %q and %q, so it applies to no build", "feature", "name", "attribute")
	}
	if values["resources"] == nil && values["amount_of"] == nil {
		d.mistake(n, "say how much: resources: {mem: 16}, or amount_of: mem beside an attribute that says it",
			"the rule has neither %q nor %q, so nothing is needed", "resources", "amount_of")
	}
	for _, key := range []string{"value", "amount_of"} {
		if at := values[key]; at != nil && values["attribute"] == nil {
			d.mistake(at, "name the attribute that it is about: attribute: memGiB", "%q has no meaning without %q", key, "attribute")
		}
	}
	if at := values["amount_of"]; at != nil && values["value"] != nil && values["attribute"] != nil {
		d.mistake(at, "write resources: {mem: 16} for one value, or remove value",
			"%q has no meaning beside %q, which says already what the attribute is", "amount_of", "value")
	}
}

func (d *decoder) neededResources(n *yaml.Node) map[string]int64 {
	all := map[string]int64{}
	d.resources(n, func(name string, amount int64, at *yaml.Node) {
		all[name] = amount
		d.needed = append(d.needed, needed{name, amount, at})
	})
	return all
}

func (d *decoder) builderResources(n *yaml.Node) map[string]int64 {
	all := map[string]int64{}
	d.resources(n, func(name string, amount int64, _ *yaml.Node) { all[name] = amount })
	return all
}

// resources calls visit for each resource of a mapping to amounts.
func (d *decoder) resources(n *yaml.Node, visit func(name string, amount int64, at *yaml.Node)) {
	const hint = "write {kvm: 4, mem: 64}"
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, "resources with their amounts", hint)
		return
	}
	if len(n.Content) == 0 {
		d.mistake(n, hint+", or remove the key", "no resource is named")
	}
	d.pairs(n, func(key, value *yaml.Node) {
		name, named := d.checkedText(key, checkName)
		if amount, ok := d.amount(value); ok && named {
			visit(name, amount, key)
		}
	})
}

// amount reads how much there is, or is needed, of a resource.
func (d *decoder) amount(n *yaml.Node) (int64, bool) {
	if d.expects(n, yaml.ScalarNode, func() *shape { return numberShape("integer", 1, maxAmount) }) {
		return 0, false
	}
	if !d.number(n, decimal, "a whole number") {
		return 0, false
	}
	amount, err := strconv.ParseInt(n.Value, 10, 64)
	if err != nil || amount < 1 || amount > maxAmount {
		d.mistake(n, "choose a number between them, in larger units if need be", "%s is not from 1 to %d", clip(n.Value), int64(maxAmount))
		return 0, false
	}
	return amount, true
}

var attributeGrammar = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_'.-]{0,127}$`)

func checkAttribute(name string) error {
	if !attributeGrammar.MatchString(name) {
		return refuse("write one name, as the derivation has it: memGiB", "%s is not the name of an attribute of a derivation", quote(name))
	}
	return nil
}

// neededResourcesExist refuses rules by which builds would wait for what no builder
// has.
func (d *decoder) neededResourcesExist() {
	for _, need := range d.needed {
		most := d.pol.mostOf(need.resource)
		switch {
		case need.resource == "": // a mistake of its own
		case most == 0:
			d.mistake(need.at, "declare it on a builder, as resources: {"+need.resource+": 4}"+orOneOf(d.pol.resourceNames()),
				"no builder has the resource %s", quote(need.resource))
		case need.amount > most:
			d.mistake(need.at, "choose a smaller number, or give a builder more", "%d of resource %s are needed, and no builder has more than %d",
				need.amount, quote(need.resource), most)
		}
	}
}

// orOneOf is the end of a hint.
func orOneOf(known []string) string {
	if len(known) == 0 {
		return ""
	}
	return ", or use one of: " + strings.Join(known, ", ")
}

// mostOf is the largest amount of a resource that a builder has.
func (p *Policy) mostOf(resource string) int64 {
	var most int64
	for i := range p.Builders {
		most = max(most, p.Builders[i].Resources[resource])
	}
	return most
}

// resourceNames are those that builders declare.
func (p *Policy) resourceNames() []string {
	var all []string
	for i := range p.Builders {
		for name := range p.Builders[i].Resources {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// NeedsOf returns what a build needs of a builder's resources: of all rules that apply,
// for each resource the largest amount; nil is nothing. Features are those that
// it requires, name is that of its derivation without hash and .drv, and env has its
// environment. The error, for the client to read, says which attribute is not the
// amount that it should be.
func (p *Policy) NeedsOf(features []string, name string, env func(key string) (string, bool)) (map[string]int64, error) {
	var all map[string]int64
	take := func(resource string, amount int64) {
		if amount > all[resource] {
			if all == nil {
				all = map[string]int64{}
			}
			all[resource] = amount
		}
	}
	for i := range p.Scheduling.Needs {
		rule := &p.Scheduling.Needs[i]
		value, applies := rule.appliesTo(features, name, env)
		if !applies {
			continue
		}
		for resource, amount := range rule.Resources {
			take(resource, amount)
		}
		if rule.AmountOf != "" {
			amount, err := amountIn(value, rule)
			if err != nil {
				return nil, err
			}
			take(rule.AmountOf, amount)
		}
	}
	return all, nil
}

// appliesTo also returns the value of the attribute that the rule looks at.
func (r *Need) appliesTo(features []string, name string, env func(string) (string, bool)) (value string, applies bool) {
	if r.Feature != "" && !slices.Contains(features, r.Feature) || r.Name != "" && !MatchName(r.Name, name) {
		return "", false
	}
	if r.Attribute == "" {
		return "", true
	}
	value, there := env(r.Attribute)
	return value, there && (r.Value == "" || value == r.Value)
}

// amountIn reads what a client wrote into an attribute; 0 needs nothing.
func amountIn(value string, rule *Need) (int64, error) {
	const digits = 13 // of maxAmount
	if len(value) <= digits && decimal.MatchString(value) {
		if amount, err := strconv.ParseInt(value, 10, 64); err == nil && amount <= maxAmount {
			return amount, nil
		}
	}
	return 0, refuse("write a whole number", "attribute %s of the derivation is %s, and must be a whole number from 0 to %d: so much %s the build needs of its builder",
		rule.Attribute, quote(value), int64(maxAmount), rule.AmountOf)
}
