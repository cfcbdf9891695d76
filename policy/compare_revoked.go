package policy

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// revocations compares what is revoked, whatever the files are called.
func (c *comparison) revocations() {
	old, next := c.old.revoked.texts(), c.next.revoked.texts()
	for _, text := range without(next, old) {
		c.add(AreaAccess, Loses, text, "is revoked and opens nothing%s", c.holder(text))
	}
	for _, text := range without(old, next) {
		c.add(AreaAccess, Gains, text, "is no longer revoked%s", c.holder(text))
	}
}

// holder names whose key a revoked one is.
func (c *comparison) holder(text string) string {
	if owner := c.owners[strings.TrimPrefix(text, "key ")]; owner != "" {
		return ": it is that of principal " + owner
	}
	return ""
}

// texts lists what is revoked.
func (r *revocations) texts() []string {
	if r == nil {
		return nil
	}
	var all []string
	for hash := range r.keys {
		all = append(all, "key "+hash.fingerprint())
	}
	all = append(all, r.certificates.texts("")...)
	for authority, of := range r.byAuthority {
		all = append(all, of.texts(" of authority "+authority.fingerprint())...)
	}
	slices.Sort(all)
	return all
}

// fingerprint is what ssh-keygen -l prints of a key.
func (h keyHash) fingerprint() string { return "SHA256:" + base64.RawStdEncoding.EncodeToString(h[:]) }

func (r *revokedCertificates) texts(of string) []string {
	var all []string
	for _, s := range r.serials {
		text := fmt.Sprintf("serial %d", s.first)
		if s.last != s.first {
			text = fmt.Sprintf("serials %d-%d", s.first, s.last)
		}
		all = append(all, "certificate with "+text+of)
	}
	for id := range r.ids {
		all = append(all, "certificate with id "+idText(id)+of)
	}
	return all
}

// hostCertificate compares certificates by what they are, whatever the files are
// called.
func (c *comparison) hostCertificate() {
	text := func(h *HostCertificate) string {
		if h == nil {
			return ""
		}
		return fmt.Sprintf("authority %s, serial %d, for %s, until %s, of key %s", ssh.FingerprintSHA256(h.Certificate.SignatureKey),
			h.Certificate.Serial, clip(strings.Join(h.Certificate.ValidPrincipals, ", ")), timeText(h.Until()), Fingerprint(h.Certificate))
	}
	old, next := text(c.old.SSH.HostCertificate), text(c.next.SSH.HostCertificate)
	switch {
	case old == next:
	case next == "":
		c.add(AreaTrust, Loses, "the host key", "has no certificate any more: clients that trust its authority no longer know the proxy")
	case old == "":
		c.add(AreaTrust, Gains, "the host key", "has a certificate: %s", next)
	default:
		c.add(AreaTrust, Changes, "the host key", "has another certificate: %s; that was %s", next, old)
	}
}
