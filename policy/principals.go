package policy

import (
	"fmt"
	"slices"

	"gopkg.in/yaml.v3"
)

const (
	maxPrincipalJobs = 100_000
	maxConnections   = 100_000
)

// The words of the policy file.
var (
	noBuilderWords = map[string]NoBuilder{"serve": NoBuilderServe, "refuse": NoBuilderRefuse}
	allowWords     = map[string]bool{"allow": true, "refuse": false}
)

// principal reads one principal.
func (d *decoder) principal(n *yaml.Node) {
	p := Principal{Domain: defaultDomainName, Weight: 1, ConnectionsPerMinute: defaultConnectionRate, BuildsPerMinute: defaultBuildRate}
	index := len(d.pol.Principals)
	values := d.mapping(n, "principals.",
		setting{"name", func(n *yaml.Node) { p.Name, _ = d.checkedText(n, checkName) }},
		setting{"keys", func(n *yaml.Node) { d.principalKeys(n, index, p.Name) }},
		setting{"authorized_keys", func(n *yaml.Node) { d.principalKeyFile(n, index, p.Name) }},
		setting{"role", func(n *yaml.Node) { p.Role = d.role(n) }},
		setting{"domain", func(n *yaml.Node) { p.Domain, _ = d.text(n) }},
		setting{"max_jobs", func(n *yaml.Node) { p.MaxJobs, _ = d.count(n, 1, maxPrincipalJobs) }},
		setting{"max_connections", func(n *yaml.Node) { p.MaxConnections, _ = d.count(n, 1, maxConnections) }},
		setting{"connections_per_minute", func(n *yaml.Node) { d.rateInto(&p.ConnectionsPerMinute, n) }},
		setting{"builds_per_minute", func(n *yaml.Node) { d.rateInto(&p.BuildsPerMinute, n) }},
		setting{"no_builder", func(n *yaml.Node) {
			p.NoBuilder, _ = choice(d, n, noBuilderWords)
		}},
		setting{"publish", func(n *yaml.Node) { p.Publish, _ = d.truth(n) }},
		setting{"check_builds", func(n *yaml.Node) { p.CheckBuilds = d.allows(n) }},
		setting{"repair_builds", func(n *yaml.Node) { p.RepairBuilds = d.allows(n) }},
		setting{"jump", func(n *yaml.Node) { p.Jump = d.jump(n) }},
		setting{"class", func(n *yaml.Node) { p.Class, _ = choice(d, n, classes) }},
		setting{"weight", func(n *yaml.Node) { p.Weight = d.weight(n) }},
	)
	d.buildModes(values, &p)
	d.requireOfPrincipal(n, values, p.Name)
	if at := values["name"]; at != nil && p.Name != "" {
		d.principalsSeen.add(d, "principal", p.Name, at)
	}
	d.refer(values["domain"], n, []string{p.Domain})
	d.pol.Principals = append(d.pol.Principals, p)
}

// buildModes fills in what a principal may ask for besides plain builds, and
// refuses it for one that builds nothing.
func (d *decoder) buildModes(values map[string]*yaml.Node, p *Principal) {
	if p.Role == RoleFull && values["check_builds"] == nil {
		p.CheckBuilds = true
	}
	if p.Role != RoleRead {
		return
	}
	for _, key := range []string{"check_builds", "repair_builds", "class", "weight", "builds_per_minute"} {
		if at := values[key]; at != nil {
			d.mistake(at, "remove it", "principal %s has role read and builds nothing, so %q has no meaning", quote(p.Name), key)
		}
	}
	if at := values["publish"]; at != nil {
		d.mistake(at, "remove it", "principal %s has role read and uploads nothing, so %q has no meaning", quote(p.Name), "publish")
	}
}

// allows reads one of the words allow and refuse.
func (d *decoder) allows(n *yaml.Node) bool {
	allowed, _ := choice(d, n, allowWords)
	return allowed
}

func (d *decoder) requireOfPrincipal(n *yaml.Node, values map[string]*yaml.Node, name string) {
	what := "a principal"
	if name != "" {
		what = "principal " + quote(name)
	}
	d.require(n, values, what,
		[2]string{"name", "name it: name: ci"},
		[2]string{"role", "there is no default: role: full uploads and builds, role: read only fetches"},
	)
	if values != nil && values["keys"] == nil && values["authorized_keys"] == nil {
		d.mistake(n, `list public keys: keys: ["ssh-ed25519 AAAA... anna@laptop"]`, "%s has neither %q nor %q", what, "keys", "authorized_keys")
	}
}

// role reads what a principal may do. A key without a role that we can keep gets
// nothing.
func (d *decoder) role(n *yaml.Node) Role {
	if n.Kind == yaml.ScalarNode && n.Value == "build" {
		d.mistake(n, "use role: read for those who only fetch; role: full makes them as good as a trusted user of the builders",
			"role \"build\", to build without being trusted, needs checks of each derivation that this version does not have")
		return RoleNone
	}
	role, _ := choice(d, n, map[string]Role{"full": RoleFull, "read": RoleRead})
	return role
}

func (d *decoder) principalKeys(n *yaml.Node, principal int, name string) {
	d.list(n, func(item *yaml.Node) {
		text, ok := d.text(item)
		if !ok {
			return
		}
		a, err := parseAuthorized(text)
		if err != nil {
			d.mistake(item, hintOf(err), "%v", err)
			return
		}
		d.addKey(a, held{principal, name, d.places.file(item), item.Line, item.Column})
	})
}

func (d *decoder) principalKeyFile(n *yaml.Node, principal int, name string) {
	path, ok := d.keyFile(n)
	if !ok {
		return
	}
	err := d.authorizedKeys(path, func(a authorized, line int) {
		d.addKey(a, held{principal, name, path, line, 1})
	})
	if err != nil {
		d.mistake(n, hintOf(err), "%v", err)
	}
}

// held says who has a key and where that is written.
type held struct {
	principal    int
	name         string
	file         string
	line, column int
}

// keyring has all keys that were read, by their wire form.
type keyring map[string]*ownedKey

type ownedKey struct {
	authorized
	held
}

// addKey notes a key, or that it has an owner already: a key that is in two
// places would have the rights of one of them, and nobody could say of which.
func (d *decoder) addKey(a authorized, h held) {
	wire := string(a.key.Marshal())
	if a.authority {
		d.addAuthority(wire, a, h)
		return
	}
	if first := d.keys[wire]; first != nil {
		d.taken(h, first, "this key is that", "a key belongs to one principal and stands there once; remove one of them")
		return
	}
	d.keys[wire] = &ownedKey{a, h}
}

// addAuthority notes a key that signs certificates. It may stand on several
// lines, as long as each name of a certificate leads to one of them.
func (d *decoder) addAuthority(wire string, a authorized, h held) {
	for _, line := range d.authorities[wire] {
		for _, name := range a.principals {
			if slices.Contains(line.principals, name) {
				d.taken(h, line, "certificates of this authority for "+quote(name)+" are those", "each name in principals= belongs to one line; remove one of them")
			}
		}
	}
	d.authorities[wire] = append(d.authorities[wire], &ownedKey{a, h})
}

func (d *decoder) taken(h held, first *ownedKey, what, hint string) {
	d.mistakes.add(Mistake{File: h.file, Line: h.line, Column: h.column,
		Text: fmt.Sprintf("%s of principal %s already, at %s:%d", what, quote(first.name), first.file, first.line),
		Hint: hint})
}
