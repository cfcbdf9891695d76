package policy

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// ClientLines are what a client of one domain needs to reach the proxy.
type ClientLines struct {
	// Systems and Features are those of all builders of the domain together,
	// sorted. No single builder need have them all.
	Systems, Features []string
	// Slots is how many builds the builders of the domain run at once.
	Slots int
	// Store is the URI of the proxy's store, without parameters.
	Store string
	// Machines is a line of a machines file; empty for a domain without builders.
	Machines string
	// HostKeyField is the last field of that line, by which Nix knows the proxy
	// without a known_hosts file.
	HostKeyField string
	// TrustedPublicKeys are those by which Nix knows what the domain signs; nil if
	// it signs nothing.
	TrustedPublicKeys []string
	// KnownHosts is a line of known_hosts.
	KnownHosts string
	// CertAuthority is another, for clients that trust the authority of the
	// proxy's certificate; empty if it has none of that name.
	CertAuthority string
	// SSHConfig are lines of ssh_config; nil if the proxy is on ssh's own port.
	SSHConfig []string
}

// ClientLines returns what a client of a domain needs that reaches the proxy as
// host, a name or an address. The error says that host is neither.
func (p *Policy) ClientLines(domain, host string, hostKey ssh.PublicKey) (ClientLines, error) {
	if !isHost(host) {
		return ClientLines{}, fmt.Errorf("%s is not the name or address of a host", quote(host))
	}
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(hostKey)))
	lines := ClientLines{
		Store:         storeURI(host),
		HostKeyField:  hostKeyField(key),
		KnownHosts:    host + " " + key,
		CertAuthority: p.certAuthority(host),
		SSHConfig:     p.sshConfig(host),
	}
	if dom := p.DomainNamed(domain); dom != nil && len(dom.Signers()) > 0 {
		lines.TrustedPublicKeys = keyTexts(dom.PublicKeys())
	}
	lines.Systems, lines.Features, lines.Slots = p.offers(domain)
	if len(lines.Systems) > 0 {
		lines.Machines = p.machine(domain, host, key)
	}
	return lines, nil
}

// certAuthority returns the line of known_hosts by which clients know every host
// of the authority that certified the proxy's key; empty if none did for host.
func (p *Policy) certAuthority(host string) string {
	c := p.SSH.HostCertificate
	if c == nil || !c.names(host) {
		return ""
	}
	return "@cert-authority " + host + " " + keyLine(c.Certificate.SignatureKey)
}
