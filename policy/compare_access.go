package policy

import (
	"maps"
	"slices"
	"strings"
)

// principals compares who may come in and what they may do there. What they may have
// besides is a matter of fields.
func (c *comparison) principals() {
	old, next := c.old.grantsByPrincipal(), c.next.grantsByPrincipal()
	was, is := byName(c.old.Principals), byName(c.next.Principals)
	for i := range c.next.Principals {
		q := &c.next.Principals[i]
		if before := was[q.Name]; before == nil {
			c.add(AreaAccess, Gains, q.subject(), "is new: %s in domain %s, with %s%s", q.may(), q.Domain, grantsText(next[q.Name]), c.next.besides(q))
		} else {
			c.rights(before, q)
			c.movedJumps(before, q)
		}
		c.keys(q, old[q.Name], next[q.Name])
	}
	for i := range c.old.Principals {
		q := &c.old.Principals[i]
		if is[q.Name] == nil {
			c.add(AreaAccess, Loses, q.subject(), "is gone: nobody can log in as it, who could %s in domain %s", q.could(), q.Domain)
			c.keys(q, old[q.Name], nil)
		}
	}
}

func byName(principals []Principal) map[string]*Principal {
	all := make(map[string]*Principal, len(principals))
	for i := range principals {
		all[principals[i].Name] = &principals[i]
	}
	return all
}

func (q *Principal) subject() string { return "principal " + q.Name }

func (q *Principal) may() string { return "may " + q.could() }

func (q *Principal) could() string {
	if q.Role == RoleFull {
		return "upload, build and fetch (role full)"
	}
	return "fetch (role read)"
}

// besides says what else a new principal may do that others should know.
func (p *Policy) besides(q *Principal) string {
	var all []string
	if q.Role == RoleFull {
		all = append(all, p.plants(q))
	}
	if len(q.Jump) > 0 {
		all = append(all, "may jump through the proxy to "+targetTexts(q.Jump))
	}
	if q.Publish {
		all = append(all, "its domain vouches for what it uploads (publish)")
	}
	if q.RepairBuilds {
		all = append(all, "may have outputs built again and replaced (repair_builds)")
	}
	if len(all) == 0 {
		return ""
	}
	return "; " + strings.Join(all, "; ")
}

// plants says aloud what role full amounts to.
func (p *Policy) plants(q *Principal) string {
	dom := p.DomainNamed(q.Domain)
	text := "can plant any store path for everybody of domain " + q.Domain
	if dom.Share == SharePublic {
		text = "can plant any store path for everybody of every domain"
	}
	if keys := keyNames(dom.PublicKeys()); dom.Sign == SignDomain {
		text += " and for everyone who trusts " + trustText(keys)
	}
	if builders := p.buildersOf(q.Domain); len(builders) > 0 {
		text += ", and is as good as a trusted user of " + strings.Join(builders, ", ")
	}
	return text
}

// rights compares role and domain of a principal.
func (c *comparison) rights(old, next *Principal) {
	who := next.subject()
	switch {
	case old.Role == RoleFull && next.Role != RoleFull:
		c.add(AreaAccess, Loses, who, "may no longer upload and build, only fetch (role read, was full)")
	case old.Role != RoleFull && next.Role == RoleFull:
		c.add(AreaAccess, Gains, who, "may upload and build (role full, was read)%s", c.next.besides(next))
	}
	if old.Domain != next.Domain {
		c.add(AreaAccess, Gains, who, "comes into domain %s and %s there%s", next.Domain, next.may(), c.next.besides(next))
		c.add(AreaAccess, Loses, who, "leaves domain %s, with all that it had there", old.Domain)
	}
}

// movedJumps compares where the names of builders lead that a principal may jump to.
func (c *comparison) movedJumps(old, next *Principal) {
	for _, target := range next.Jump {
		was, is := c.old.BuilderNamed(target.Builder), c.next.BuilderNamed(target.Builder)
		if was != nil && is != nil && was.Address != is.Address && slices.Contains(old.Jump, target) {
			c.add(AreaAccess, Changes, next.subject(), "jumps by the name of builder %s to %s, which was %s", is.Name, is.Address, was.Address)
		}
	}
}

// keys compares the lines by which one may log in as a principal.
func (c *comparison) keys(q *Principal, old, next []*grant) {
	before, now := byLine(old), byLine(next)
	for _, line := range slices.Sorted(maps.Keys(now)) {
		g, was := now[line], before[line]
		switch {
		case was == nil:
			c.add(AreaAccess, Gains, q.subject(), "can log in with %s%s%s", line, g.narrowingText(), otherOwner(c.oldOwners, g, q, ", which was that of principal "))
		case was.narrowingText() != g.narrowingText():
			c.add(AreaAccess, narrowed(was, g), q.subject(), "can log in with %s%s; that was%s", line, g.narrowingOr(" without restrictions"), was.narrowingOr(" without restrictions"))
		}
	}
	for _, line := range slices.Sorted(maps.Keys(before)) {
		if g := before[line]; now[line] == nil {
			c.add(AreaAccess, Loses, q.subject(), "can no longer log in with %s%s", line, otherOwner(c.owners, g, q, ", which is that of principal "))
		}
	}
	c.orders(q, namesByAuthority(old), namesByAuthority(next))
}

// byLine has lines by what is the same of them however they are narrowed; that of an
// authority once for each name.
func byLine(grants []*grant) map[string]*grant {
	all := map[string]*grant{}
	for _, g := range grants {
		if !g.authority {
			all["key "+g.fingerprint] = g
		}
		for _, name := range g.principals {
			all["certificates of authority "+g.fingerprint+" for "+unquoted(name)] = g
		}
	}
	return all
}

func (g *grant) narrowingText() string {
	if all := g.narrowing(); len(all) > 0 {
		return " (" + strings.Join(all, ", ") + ")"
	}
	return ""
}

func (g *grant) narrowingOr(nothing string) string {
	if text := g.narrowingText(); text != "" {
		return text
	}
	return nothing
}

// narrowed says what another narrowing is to who has the key.
func narrowed(old, next *grant) Effect {
	was, is := old.narrowing(), next.narrowing()
	switch {
	case len(without(is, was)) == 0:
		return Gains
	case len(without(was, is)) == 0:
		return Loses
	}
	return Changes
}

// owners are the principals of plain keys, by fingerprint.
func (p *Policy) owners() map[string]string {
	all := make(map[string]string, len(p.keys))
	for _, g := range p.keys {
		all[g.fingerprint] = g.principal.Name
	}
	return all
}

// otherOwner says that a plain key is that of another principal.
func otherOwner(owners map[string]string, g *grant, q *Principal, words string) string {
	if owner := owners[g.fingerprint]; owner != "" && owner != q.Name && !g.authority {
		return words + owner
	}
	return ""
}
