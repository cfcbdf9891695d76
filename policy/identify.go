package policy

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"
)

// grant is what a line of authorized_keys gives: to its key, or to certificates
// that its key has signed.
type grant struct {
	principal   *Principal
	fingerprint string
	keyOptions
}

// index makes the tables that Identify looks into.
func (d *decoder) index() {
	p := d.pol
	for wire, k := range d.keys {
		p.keys[wire] = k.grant(p)
	}
	for wire, lines := range d.authorities {
		for _, k := range lines {
			p.authorities[wire] = append(p.authorities[wire], k.grant(p))
		}
	}
}

func (k *ownedKey) grant(p *Policy) *grant {
	return &grant{&p.Principals[k.principal], ssh.FingerprintSHA256(k.key), k.keyOptions}
}

// Access is what one key opens: its principal, and what the key's own line or
// certificate narrows. It belongs to the policy and must not be changed.
type Access struct {
	Principal *Principal
	// Command, if not empty, is what is served whatever the client asks for:
	// "nix-daemon --stdio", "nix-store --serve" or "nix-store --serve --write".
	Command string
	// NoJump keeps the key from the bastion.
	NoJump bool
	// PermitOpen, if not nil, narrows the principal's Jump to these, which have
	// neither builders nor patterns.
	PermitOpen []JumpTarget
	// Certificate tells for logs which certificate was shown: key id, serial and
	// authority. It is empty for plain keys.
	Certificate string
}

// Identify returns what a key or certificate opens from an address, now. Whoever
// is not in the policy is refused. The error is for the log; it has the key's
// fingerprint. That the client has the private key is the caller's to verify.
//
// For a certificate the signature of its authority is verified, which takes up
// to a millisecond. Of keys that are merely offered ask [Policy.Offered].
func (p *Policy) Identify(key ssh.PublicKey, remote netip.Addr) (*Access, error) {
	now := time.Now()
	access, err := p.lookUp(key, remote, now, now)
	if err != nil {
		return nil, err
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		if err := checkSignature(cert); err != nil {
			return nil, certificateError(key, err)
		}
	}
	return access, nil
}

// Offered reports why a key or certificate would open nothing, nil if it may be
// worth a proof. It is a look-up in memory that verifies no signature, so it is
// no answer to who somebody is.
func (p *Policy) Offered(key ssh.PublicKey, remote netip.Addr) error {
	now := time.Now()
	_, err := p.lookUp(key, remote, now, now)
	return err
}

// Still returns what a key or certificate opens now whose owner logged in at since and
// has proved then that it is theirs. Other than [Policy.Identify] it lets a certificate
// outlive its own last moment, as sshd does: that has ended nobody's connection. All
// that the policy says counts as it stands. No signature is verified again.
func (p *Policy) Still(key ssh.PublicKey, remote netip.Addr, since time.Time) (*Access, error) {
	return p.lookUp(key, remote, time.Now(), since)
}

// Revoked reports whether a key or certificate is in the list of those that open
// nothing.
func (p *Policy) Revoked(key ssh.PublicKey) bool {
	if cert, ok := key.(*ssh.Certificate); ok {
		return p.revoked.certificate(cert) != ""
	}
	return p.revoked.hasKey(key)
}

// Fingerprint returns that of a key, or of the key that a certificate is for, as
// ssh-keygen -l prints it.
func Fingerprint(key ssh.PublicKey) string {
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	return ssh.FingerprintSHA256(key)
}

// certificateError has the reason first: logs cut long ones.
func certificateError(cert ssh.PublicKey, err error) error {
	return fmt.Errorf("certificate: %w (of key %s)", err, Fingerprint(cert))
}

// lookUp takes keys as of now, and certificates as of when they were shown.
func (p *Policy) lookUp(key ssh.PublicKey, remote netip.Addr, now, shown time.Time) (*Access, error) {
	if cert, ok := key.(*ssh.Certificate); ok {
		access, err := p.certified(cert, remote, now, shown)
		if err != nil {
			return nil, certificateError(key, err)
		}
		return access, nil
	}
	g := p.keys[string(key.Marshal())]
	if g == nil {
		return nil, fmt.Errorf("key %s is not in the policy", ssh.FingerprintSHA256(key))
	}
	if p.revoked.hasKey(key) {
		return nil, fmt.Errorf("key %s of principal %s is revoked", g.fingerprint, g.principal.Name)
	}
	if err := g.usable(remote, now); err != nil {
		return nil, fmt.Errorf("key %s of principal %s %w", g.fingerprint, g.principal.Name, err)
	}
	return &Access{Principal: g.principal, Command: g.command, NoJump: g.noJump, PermitOpen: g.permitOpen}, nil
}

// usable says what a line has against an address or a time.
func (o *keyOptions) usable(remote netip.Addr, now time.Time) error {
	switch {
	case !o.from.allows(remote) && !remote.IsValid():
		return fmt.Errorf("may be used from %s alone, and no address is known", o.from)
	case !o.from.allows(remote):
		return fmt.Errorf("must not be used from %s", remote)
	case o.expired(now):
		return fmt.Errorf("expired on %s", timeText(o.expiry))
	}
	return nil
}

func (o *keyOptions) expired(now time.Time) bool {
	return !o.expiry.IsZero() && !now.Before(o.expiry)
}

// timeText writes a time for people, in UTC.
func timeText(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05Z") }
