package proxy

import (
	"fmt"
	"slices"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// hostPlaceholder stands for the name by which a client knows the proxy, which
// ssh does not tell us.
const hostPlaceholder = "HOST"

// keyAnswer says what a key is here and what its client needs.
type keyAnswer struct {
	Version string `json:"version"`
	// Key is the fingerprint of the key that logged in, Certificate what is known
	// of its certificate, if it had one.
	Key         string `json:"key"`
	Certificate string `json:"certificate,omitempty"`
	// User is the login name, which means nothing here, and Address where the
	// client comes from.
	User      string `json:"user"`
	Address   string `json:"address"`
	Principal string `json:"principal"`
	Role      string `json:"role"`
	Domain    string `json:"domain"`
	// Trusted is what clients of ssh-ng are told of their standing.
	Trusted bool `json:"trusted"`
	// Systems and Features are those of all builders of the domain together.
	Systems  []string `json:"systems"`
	Features []string `json:"features"`
	Slots    int      `json:"slots"`
	// BuildersUp of Builders are not known to be down.
	BuildersUp int `json:"builders_up"`
	Builders   int `json:"builders"`
	// Host is the name that the lines below have, which is the client's word or
	// the placeholder HOST.
	Host string `json:"host"`
	// MachinesLine is empty for a key that may not build or has no builder.
	MachinesLine string `json:"machines_line"`
	// TrustedPublicKeys are those by which Nix knows what the domain signs. They
	// are in NixConf, too.
	TrustedPublicKeys []string `json:"trusted_public_keys,omitempty"`
	NixConf           []string `json:"nix_conf"`
	KnownHostsLine    string   `json:"known_hosts_line"`
	// CertAuthorityLine is there if this host shows a certificate for Host.
	CertAuthorityLine string   `json:"cert_authority_line,omitempty"`
	HostKeyField      string   `json:"host_key_field"`
	SSHConfig         []string `json:"ssh_config"`
}

func (p *Proxy) checkKey(a *asker, args []string) (answer, error) {
	host := hostPlaceholder
	switch len(args) {
	case 0:
	case 1:
		host = args[0]
	default:
		return nil, usage("say check, or check HOST with the name by which you reach this host")
	}
	pol, principal := p.policy.Current(), a.access.Principal
	lines, err := pol.ClientLines(principal.Domain, host, p.hostKey)
	if err != nil {
		return nil, usage("%v", err)
	}
	k := &keyAnswer{
		Version: p.version, Key: a.client.Fingerprint, Certificate: a.access.Certificate,
		User: a.client.User, Address: a.client.Remote.Addr().Unmap().String(),
		Principal: principal.Name, Role: principal.Role.String(), Domain: principal.Domain,
		Trusted: trustOf(principal.Role) == nix.Trusted,
		Systems: orNone(lines.Systems), Features: orNone(lines.Features), Slots: lines.Slots,
		TrustedPublicKeys: lines.TrustedPublicKeys,
		Host:              host, KnownHostsLine: lines.KnownHosts, CertAuthorityLine: lines.CertAuthority, HostKeyField: lines.HostKeyField, SSHConfig: orNone(lines.SSHConfig),
	}
	k.BuildersUp, k.Builders = p.countBuilders(principal.Domain)
	k.nixLines(principal.Role, lines)
	return k, nil
}

// nixLines are for the client's Nix: a builder for those who may build, a
// substituter for those who may read and for all where the proxy signs. With
// fallback, Nix builds what neither has when a substituter fails.
func (k *keyAnswer) nixLines(role policy.Role, lines policy.ClientLines) {
	if role == policy.RoleFull && lines.Machines != "" {
		k.MachinesLine = lines.Machines
		k.NixConf = append(k.NixConf, "builders = @/etc/nix/machines")
	}
	if k.MachinesLine == "" || len(lines.TrustedPublicKeys) > 0 {
		k.NixConf = append(k.NixConf, policy.SubstituterLine(lines.Store))
	}
	if len(lines.TrustedPublicKeys) > 0 {
		k.NixConf = append(k.NixConf, policy.TrustedKeysLine(lines.TrustedPublicKeys))
	}
	k.NixConf = append(k.NixConf, "fallback = true")
}

func (p *Proxy) countBuilders(domain string) (up, all int) {
	for _, b := range p.glances.take(p.router).Builders {
		if b.Removed || !slices.Contains(b.Domains, domain) {
			continue
		}
		all++
		if b.Trouble == "" {
			up++
		}
	}
	return up, all
}

func (k *keyAnswer) print(page *page) {
	rows := [][]string{{"key", k.Key}}
	if k.Certificate != "" {
		rows = append(rows, []string{"certificate", k.Certificate})
	}
	page.table(append(rows, [][]string{
		{"logged in as", k.User + " from " + k.Address + " (the name means nothing here)"},
		{"principal", k.Principal},
		{"role", k.Role + ", " + k.roleText()},
		{"domain", k.Domain},
		{"systems", list(k.Systems)},
		{"features", list(k.Features)},
		{"builders", fmt.Sprintf("%d of %d up, %s at once", k.BuildersUp, k.Builders, policy.CountOf(k.Slots, "build"))},
	}...))
	if k.MachinesLine != "" {
		page.paste("in /etc/nix/machines, one line, with the client's own key in it", k.MachinesLine)
	}
	if k.Trusted || len(k.TrustedPublicKeys) > 0 {
		page.paste("in /etc/nix/nix.conf", k.NixConf...)
	} else {
		page.paste("in /etc/nix/nix.conf; Nix takes only what is signed by a key that it trusts", k.NixConf...)
	}
	page.paste("in /root/.ssh/known_hosts, one line", k.KnownHostsLine)
	if k.CertAuthorityLine != "" {
		page.paste("or there, for clients that trust the authority of this host's certificate", k.CertAuthorityLine)
	}
	page.paste("or the same as the last field of a line in /etc/nix/machines, and as publicHostKey of nix.buildMachines", k.HostKeyField)
	if len(k.SSHConfig) > 0 {
		page.paste("in /root/.ssh/config, as this host is not on port 22", k.SSHConfig...)
	}
	if k.Host == hostPlaceholder {
		page.line("\n%s stands for the name by which the client reaches this host; `ssh NAME check NAME` fills it in.", hostPlaceholder)
	}
}

func (k *keyAnswer) roleText() string {
	if k.Trusted {
		return "may upload, build and fetch; clients are told that they are trusted"
	}
	return "may fetch; clients are told that they are not trusted"
}

// paste prints lines that are to be copied somewhere.
func (p *page) paste(where string, lines ...string) {
	p.line("\n%s:", where)
	for _, line := range lines {
		p.line("  %s", line)
	}
}
