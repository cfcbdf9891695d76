package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// domains compares which there are, what they sign with, and what can be built for
// them.
func (c *comparison) domains() {
	for i := range c.next.Domains {
		next := &c.next.Domains[i]
		old := c.old.DomainNamed(next.Name)
		if old == nil {
			c.add(AreaAccess, Changes, next.subject(), "is new")
			old = &Domain{Name: next.Name}
		}
		c.domain(old, next)
	}
	for i := range c.old.Domains {
		old := &c.old.Domains[i]
		if c.next.DomainNamed(old.Name) == nil {
			c.add(AreaAccess, Loses, old.subject(), "is gone, with what only it can see in the store")
			c.domain(old, &Domain{Name: old.Name})
		}
	}
}

func (d *Domain) subject() string { return "domain " + d.Name }

func (c *comparison) domain(old, next *Domain) {
	who := next.subject()
	before, now := keyTexts(publicOf(old.SigningKeys)), keyTexts(publicOf(next.SigningKeys))
	for _, key := range without(now, before) {
		c.add(AreaTrust, Gains, who, "has the signing key %s", key)
	}
	for _, key := range without(before, now) {
		c.add(AreaTrust, Loses, who, "no longer has the signing key %s", key)
	}
	c.fields(who, "domains.", old.fields(), next.fields())
	c.offers(who, next.Name)
}

// offers compares what the builders of a domain are together, which is what its
// principals notice.
func (c *comparison) offers(who, domain string) {
	if !c.old.hasPrincipal(domain) && !c.next.hasPrincipal(domain) {
		return
	}
	oldSystems, oldFeatures, oldSlots := c.old.offers(domain)
	systems, features, slots := c.next.offers(domain)
	for _, of := range []struct {
		gained, lost string
		old, next    []string
	}{
		{"can build for %s", "can no longer build for %s", oldSystems, systems},
		{"has a builder with the feature %s", "no longer has a builder with the feature %s", oldFeatures, features},
	} {
		if gained := without(of.next, of.old); len(gained) > 0 {
			c.add(AreaBuilders, Gains, who, of.gained, strings.Join(gained, ", "))
		}
		if lost := without(of.old, of.next); len(lost) > 0 {
			c.add(AreaBuilders, Loses, who, of.lost, strings.Join(lost, ", "))
		}
	}
	if slots != oldSlots {
		c.add(AreaBuilders, moreOrLess(float64(oldSlots), float64(slots)), who, "has %s at once, had %d", CountOf(slots, "build"), oldSlots)
	}
}

func moreOrLess(old, next float64) Effect {
	switch {
	case next > old:
		return Gains
	case next < old:
		return Loses
	}
	return Changes
}

// trustedKeys compares whose signatures prove a store path.
func (c *comparison) trustedKeys() {
	flat := func(p *Policy) map[string]bool {
		all := map[string]bool{}
		for _, key := range p.TrustedPublicKeys {
			all[key.String()] = key.Public
		}
		return all
	}
	old, next := flat(c.old), flat(c.next)
	for _, key := range slices.Sorted(maps.Keys(next)) {
		public, known := old[key]
		switch {
		case !known && next[key]:
			c.add(AreaTrust, Gains, "key "+key, "is trusted: what it signed is proven, and is shown to every domain (public)")
		case !known:
			c.add(AreaTrust, Gains, "key "+key, "is trusted: what it signed is proven")
		case public && !next[key]:
			c.add(AreaTrust, Loses, "key "+key, "no longer opens what it signed to every domain (public: false)")
		case !public && next[key]:
			c.add(AreaTrust, Gains, "key "+key, "opens what it signed to every domain (public: true)")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(old)) {
		if _, still := next[key]; !still {
			c.add(AreaTrust, Loses, "key "+key, "is no longer trusted: what it signed proves nothing by that")
		}
	}
}

// builders compares which there are. What changes about one is a matter of fields.
func (c *comparison) builders() {
	for i := range c.next.Builders {
		b := &c.next.Builders[i]
		old := c.old.BuilderNamed(b.Name)
		if old == nil {
			c.add(AreaBuilders, Gains, b.subject(), "is new, %s: %s", reachText(b), b.summary())
			c.commands(b)
			continue
		}
		for _, domain := range without(b.Domains, old.Domains) {
			c.add(AreaTrust, Gains, "domain "+domain, "may use builder %s", b.Name)
		}
		for _, domain := range without(old.Domains, b.Domains) {
			c.add(AreaTrust, Loses, "domain "+domain, "may no longer use builder %s", b.Name)
		}
	}
	for i := range c.old.Builders {
		if b := &c.old.Builders[i]; c.next.BuilderNamed(b.Name) == nil {
			c.add(AreaBuilders, Loses, b.subject(), "is gone: %s", b.summary())
		}
	}
}

func (b *Builder) subject() string { return "builder " + b.Name }

func (b *Builder) summary() string {
	return fmt.Sprintf("%s at once of %s, for domain %s", CountOf(b.MaxJobs, "build"), strings.Join(systemTexts(b), ", "), strings.Join(b.Domains, " and "))
}

// commands names what a new builder has the proxy run on its own machine.
func (c *comparison) commands(b *Builder) {
	for _, command := range [][]string{b.Wake.Command, b.Wake.Sleep} {
		if len(command) > 0 {
			c.add(AreaTrust, Changes, b.subject(), "has the proxy run %s", valueText(command))
		}
	}
}
