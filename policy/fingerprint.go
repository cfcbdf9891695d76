package policy

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// fingerprintPrefix is how ssh-keygen -l begins one.
const fingerprintPrefix = "SHA256:"

// ReadKey reads a public key or a certificate as a line of its file has it, or finds
// the key of the policy that has a fingerprint. The error is for the admin.
func (p *Policy) ReadKey(text string) (ssh.PublicKey, error) {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, fingerprintPrefix) {
		return p.keyWith(text)
	}
	key, options, err := parseKeyLine(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("not a public key: %s; it is a line of an .pub file, or a fingerprint (SHA256:...)", quote(text))
	case len(options) > 0:
		return nil, fmt.Errorf("%s stands before the key; options count where the policy has them, so give the key alone", quote(strings.Join(options, ",")))
	}
	return key, nil
}

// keyWith finds a key by its fingerprint.
func (p *Policy) keyWith(fingerprint string) (ssh.PublicKey, error) {
	for wire, g := range p.keys {
		if g.fingerprint == fingerprint {
			return ssh.ParsePublicKey([]byte(wire))
		}
	}
	isIt := func(g *grant) bool { return g.fingerprint == fingerprint }
	for _, lines := range p.authorities {
		if slices.ContainsFunc(lines, isIt) {
			return nil, fmt.Errorf("key %s signs certificates and logs nobody in by itself; ask for a certificate that it has signed", fingerprint)
		}
	}
	return nil, fmt.Errorf("key %s is not in the policy", quote(fingerprint))
}
