package policy

import (
	"fmt"
	"net/netip"

	"golang.org/x/crypto/ssh"
)

// grant is what a key opens.
type grant struct {
	principal   *Principal
	fingerprint string
	from        fromList
}

// index makes the table that Identify looks into.
func (d *decoder) index() {
	p := d.pol
	for wire, k := range d.keys {
		p.keys[wire] = &grant{&p.Principals[k.principal], ssh.FingerprintSHA256(k.key), k.from}
	}
}

// Access is what one key opens: its principal, and what the key's own line or
// certificate narrows. It belongs to the policy and must not be changed.
type Access struct {
	Principal *Principal
	// Command, if not empty, is what is served whatever the client asks for.
	Command string
	// NoJump keeps the key from the bastion.
	NoJump bool
	// PermitOpen, if not nil, narrows the principal's Jump to these.
	PermitOpen []JumpTarget
	// Certificate tells for logs which certificate was shown: key id, serial and
	// authority. It is empty for plain keys.
	Certificate string
}

// Identify returns what a key opens from an address. Whoever is not in the policy
// is refused. The error is for the log; it has the key's fingerprint.
func (p *Policy) Identify(key ssh.PublicKey, remote netip.Addr) (*Access, error) {
	g := p.keys[string(key.Marshal())]
	if g == nil {
		return nil, fmt.Errorf("key %s is not in the policy", ssh.FingerprintSHA256(key))
	}
	if !g.from.allows(remote) {
		return nil, fmt.Errorf("key %s of principal %s must not be used from %s", g.fingerprint, g.principal.Name, remote)
	}
	return &Access{Principal: g.principal}, nil
}
