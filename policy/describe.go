package policy

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Describe says in plain words what the policy means, and prints the lines with
// which clients reach the proxy as host, a name or an address. The error is that
// of w, or says that host is neither.
func (p *Policy) Describe(w io.Writer, host string) error {
	if !isHost(host) {
		return fmt.Errorf("%s is not the name or address of a host", quote(host))
	}
	t := &description{pol: p, grants: p.grantsByPrincipal(), now: time.Now()}
	t.server()
	t.scheduling()
	for i := range p.Domains {
		t.domain(&p.Domains[i])
	}
	for i := range p.Builders {
		t.builder(&p.Builders[i])
	}
	t.paste(host)
	t.warnings()
	_, err := io.WriteString(w, t.String())
	return err
}

// description collects the text.
type description struct {
	strings.Builder
	pol    *Policy
	grants map[string][]*grant // by the principal's name
	now    time.Time
}

func (t *description) line(depth int, format string, args ...any) {
	fmt.Fprintf(t, strings.Repeat("  ", depth)+format+"\n", args...)
}

// grantsByPrincipal has keys first, then those that sign certificates.
func (p *Policy) grantsByPrincipal() map[string][]*grant {
	all := map[string][]*grant{}
	for _, wire := range slices.Sorted(maps.Keys(p.keys)) {
		g := p.keys[wire]
		all[g.principal.Name] = append(all[g.principal.Name], g)
	}
	for _, wire := range slices.Sorted(maps.Keys(p.authorities)) {
		for _, g := range p.authorities[wire] {
			all[g.principal.Name] = append(all[g.principal.Name], g)
		}
	}
	return all
}

func (t *description) server() {
	p := t.pol
	if len(p.Included) > 0 {
		t.line(0, "The policy has parts in %s.", strings.Join(p.Included, ", "))
	}
	t.line(0, "The proxy listens on %s. %s has its host key and the cache.", strings.Join(p.Listen, " and "), p.StateDir)
	if p.DrainTimeout > 0 {
		t.line(0, "When it is stopped, running builds have %s to end; when it is upgraded, all the time they need.", durationText(p.DrainTimeout))
	} else {
		t.line(0, "When it is stopped, running builds end at once (drain_timeout: 0).")
	}
	t.line(0, "The cache holds up to %s, of which %s are for uploads alone.", sizeText(p.Cache.Size), sizeText(p.Cache.SpoolReserve))
	if p.Cache.ScrubRate > 0 {
		t.line(0, "%s of it are read again each second, to find what rotted on disk.", sizeText(p.Cache.ScrubRate))
	} else {
		t.line(0, "What rots on disk is found only when it is read (scrub_rate: 0).")
	}
	t.line(0, "A NAR may have up to %s; %s of each build's log are kept.", sizeText(p.Limits.NarSize), sizeText(p.Limits.BuildLog))
	t.line(0, "Of the last %d builds it is known how they ended; of their logs the latest are kept, up to %s together.", p.Limits.BuildHistory, sizeText(p.Limits.BuildLogs))
	if len(p.SSH.Ciphers) > 0 {
		t.line(0, "Clients may choose from the ciphers %s.", strings.Join(p.SSH.Ciphers, ", "))
	}
	t.frontLimits()
	t.certified(p.SSH.HostCertificate)
	t.revocations()
	t.commands(p.Commands)
	t.trust(p.TrustedPublicKeys)
	t.reloads(p.Reload)
	t.audit(p.Audit)
	t.line(0, "The admin asks on %s: root, the proxy's own account%s.", p.Admin.Socket, adminsText(p.Admin.Users))
	t.metricsText(p.Metrics)
}

func adminsText(users []string) string {
	if len(users) == 0 {
		return " and nobody else"
	}
	return " and " + strings.Join(users, ", ")
}

// commands says how far commands may differ from the plain ones.
func (t *description) commands(c Commands) {
	if c.RemoteStore == RemoteStoreIgnore {
		t.line(0, "Clients that ask for another store (remote-store) get this one all the same.")
	} else {
		t.line(0, "Clients that ask for another store (remote-store) are refused.")
	}
	if c.PlainProgram {
		t.line(0, "Clients that name a program with its directory (remote-program) are refused.")
	}
}

func (t *description) trust(keys []TrustedKey) {
	if len(keys) == 0 {
		t.line(0, "No signature proves a store path.")
		return
	}
	all := make([]string, len(keys))
	for i, key := range keys {
		all[i] = key.Name()
	}
	t.line(0, "Signatures of %s prove a store path.", strings.Join(all, ", "))
	if public := t.pol.publicKeys(); len(public) > 0 {
		t.line(0, "A path with a signature of %s is shown to every domain, once somebody has brought it (public).", strings.Join(public, ", "))
	}
}

func (t *description) domain(d *Domain) {
	name := d.Name
	t.line(0, "\nDomain %s", name)
	full := t.principals(name, RoleFull, "may upload, build and fetch")
	t.principals(name, RoleRead, "may fetch only")
	builders := t.pol.buildersOf(name)
	if len(builders) == 0 {
		t.line(1, "builders: none")
	} else {
		t.line(1, "builders: %s", strings.Join(builders, ", "))
	}
	if len(full) > 0 {
		t.line(1, "%s", powers(full, builders, d.plantedFor()))
	}
	t.signing(d, full)
	t.readers(d)
}

// principals lists those of a role and returns what gives their rights.
func (t *description) principals(domain string, role Role, may string) (grants []*grant) {
	head := false
	for _, q := range t.pol.Principals {
		if q.Domain != domain || q.Role != role {
			continue
		}
		if !head {
			t.line(1, "%s (role %s):", may, role)
			head = true
		}
		t.principal(q)
		grants = append(grants, t.grants[q.Name]...)
	}
	return grants
}

func (t *description) principal(q Principal) {
	parts := []string{grantsText(t.grants[q.Name])}
	if q.MaxJobs > 0 {
		parts = append(parts, "at most "+CountOf(q.MaxJobs, "build")+" at once")
	}
	if q.MaxConnections > 0 {
		parts = append(parts, "at most "+CountOf(q.MaxConnections, "connection"))
	}
	if q.ConnectionsPerMinute != defaultConnectionRate {
		parts = append(parts, "at most "+CountOf(int(q.ConnectionsPerMinute), "connection")+" a minute")
	}
	if q.Role == RoleFull && q.BuildsPerMinute != defaultBuildRate {
		parts = append(parts, "at most "+CountOf(int(q.BuildsPerMinute), "build")+" a minute")
	}
	if q.Class != ClassNormal {
		parts = append(parts, "its builds are "+q.Class.String()+" (class)")
	}
	if q.Weight != 1 {
		parts = append(parts, "weight "+speedText(q.Weight))
	}
	if q.NoBuilder == NoBuilderRefuse {
		parts = append(parts, "sent away while no builder is up")
	}
	if q.Role == RoleFull && !q.CheckBuilds {
		parts = append(parts, "no builds to check outputs (check_builds)")
	}
	if q.Publish {
		parts = append(parts, "the domain vouches for what it uploads (publish)")
	}
	if q.RepairBuilds {
		parts = append(parts, "may have outputs built again and replaced (repair_builds)")
	}
	t.line(2, "%s: %s", q.Name, strings.Join(parts, ", "))
	if len(q.Jump) > 0 {
		t.line(3, "may jump through the proxy to %s", strings.Join(t.jumpTexts(q.Jump), ", "))
	}
	for _, g := range t.grants[q.Name] {
		t.grant(g)
	}
}

// jumpTexts says where builders are, as their names alone say nothing of it.
func (t *description) jumpTexts(targets []JumpTarget) []string {
	all := make([]string, len(targets))
	for i, target := range targets {
		all[i] = target.meaning()
		if b := t.pol.BuilderNamed(target.Builder); b != nil {
			all[i] = fmt.Sprintf("builder %s (%s)", b.Name, b.Address)
		}
	}
	return all
}

// meaning says what the "*" of a target stand for.
func (t JumpTarget) meaning() string {
	text := t.String()
	if t.Port == 0 && t.Builder == "" {
		text = strings.TrimSuffix(text, ":*") + " at every port"
	}
	if t.Host == "*" {
		text += " (any name without a dot)"
	}
	return text
}

// powers says aloud what role full amounts to.
func powers(grants []*grant, builders []string, victims string) string {
	text := eachFull(grants) + " can plant any store path for " + victims
	if len(builders) > 0 {
		text += ", and is as good as a trusted user of " + strings.Join(builders, ", ")
	}
	return text + "."
}

// eachFull names those with role full as the subject of a sentence.
func eachFull(grants []*grant) string {
	keys, authorities := countGrants(grants)
	who := "Each of the " + CountOf(keys, "full key") + " of this domain"
	if keys == 1 {
		who = "The one full key of this domain"
	}
	switch {
	case authorities > 0 && keys == 0:
		who = "Each certificate for this domain"
	case authorities > 0:
		who += ", and each certificate for it,"
	}
	return who
}

func (t *description) builder(b *Builder) {
	t.line(0, "\nBuilder %s, %s", b.Name, reachText(b))
	t.line(1, "builds for %s", strings.Join(systemTexts(b), ", "))
	if len(b.Features) > 0 {
		t.line(1, "offers the features %s", strings.Join(b.Features, ", "))
	}
	if len(b.MandatoryFeatures) > 0 {
		t.line(1, "takes only builds that require %s", strings.Join(b.MandatoryFeatures, " and "))
	}
	t.line(1, "%s at once, speed factor %s; for domain %s",
		CountOf(b.MaxJobs, "build"), speedText(b.SpeedFactor), strings.Join(b.Domains, " and "))
	if b.RemoteProgram != "" {
		t.line(1, "runs %s there", b.RemoteProgram)
	}
	if b.Content == ContentMatch {
		t.line(1, "gets no build for which it holds an input with other bytes than the cache has (builder_content: match)")
	} else {
		t.line(1, "an input that it holds already is used, whatever its bytes, as Nix does (builder_content: accept)")
	}
	t.builderScheduling(b)
}

// reachText says how a builder is reached.
func reachText(b *Builder) string {
	switch {
	case b.Socket != "":
		return "the daemon of this machine at " + b.Socket + "; the proxy's own account must be in its trusted-users"
	case b.Protocol == ProtocolServe:
		return fmt.Sprintf("reached as %s@%s and spoken to by nix-store --serve (protocol: ssh)", b.User, b.Address)
	}
	return fmt.Sprintf("reached as %s@%s", b.User, b.Address)
}

func systemTexts(b *Builder) []string {
	var all []string
	for _, system := range slices.Sorted(maps.Keys(b.Systems)) {
		if speed := b.Systems[system]; speed != 1 {
			system += " (speed " + speedText(speed) + ")"
		}
		all = append(all, system)
	}
	return all
}

// warnings name what is allowed and hardly meant.
func (t *description) warnings() {
	var all []string
	warn := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	p := t.pol
	if len(p.Principals) == 0 {
		warn("there is no principal: nobody can log in")
	}
	if len(p.Builders) == 0 {
		warn("there is no builder: nothing can be built")
	}
	for _, q := range p.Principals {
		if len(t.grants[q.Name]) == 0 {
			warn("principal %s has no key: nobody can log in as it", q.Name)
		}
		if q.Role == RoleFull && len(p.Builders) > 0 && len(p.buildersOf(q.Domain)) == 0 {
			warn("principal %s may build, but no builder is for domain %s", q.Name, q.Domain)
		}
	}
	for _, b := range p.Builders {
		if len(p.Principals) > 0 && !slices.ContainsFunc(b.Domains, p.hasFull) {
			warn("builder %s is for domains where nobody may build", b.Name)
		}
	}
	t.signingWarnings(warn)
	t.keyWarnings(warn)
	t.certificateWarnings(warn)
	t.schedulingWarnings(warn)
	t.frontWarnings(warn)
	if len(p.Admin.Socket) > maxSocketPath {
		warn("the path of the admin's socket is longer than %d bytes, which no socket can have; choose another: admin: {socket: PATH}", maxSocketPath)
	}
	for i, text := range all {
		if i == 0 {
			t.line(0, "")
		}
		t.line(0, "warning: %s", text)
	}
}

func (p *Policy) buildersOf(domain string) []string {
	var all []string
	for _, b := range p.Builders {
		if slices.Contains(b.Domains, domain) {
			all = append(all, b.Name)
		}
	}
	return all
}

// CountOf is a number of things whose plural ends in s, for people.
func CountOf[N int | int64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func speedText(speed float64) string { return strconv.FormatFloat(speed, 'f', -1, 64) }
