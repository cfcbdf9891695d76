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

// Identify returns whose key it is, if it may be used from the address. Whoever is
// not in the policy is refused. The principal belongs to the policy and must not
// be changed. The error is for the log; it has the key's fingerprint.
func (p *Policy) Identify(key ssh.PublicKey, remote netip.Addr) (*Principal, error) {
	g := p.keys[string(key.Marshal())]
	if g == nil {
		return nil, fmt.Errorf("key %s is not in the policy", ssh.FingerprintSHA256(key))
	}
	if !g.from.allows(remote) {
		return nil, fmt.Errorf("key %s of principal %s must not be used from %s", g.fingerprint, g.principal.Name, remote)
	}
	return g.principal, nil
}
