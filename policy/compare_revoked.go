package policy

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// revocations compares what is revoked, whatever the files are called.
func (c *comparison) revocations() {
	old, next := c.old.revoked, c.next.revoked
	for _, text := range next.beyond(old, false) {
		c.add(AreaAccess, Loses, text, "is revoked and opens nothing%s", c.holder(text))
	}
	for _, text := range old.beyond(next, true) {
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

// beyond lists what is revoked here, and not by another list; or, unless inAnyWay, not in
// the same way, which may be for one authority or for all of them.
func (r *revocations) beyond(other *revocations, inAnyWay bool) []string {
	if r == nil {
		return nil
	}
	if other == nil {
		other = newRevocations()
	}
	var all []string
	for hash := range r.keys {
		if !other.keys[hash] {
			all = append(all, "key "+hash.fingerprint())
		}
	}
	all = append(all, r.certificates.beyond("", &other.certificates)...)
	for authority, of := range r.byAuthority {
		there := []*revokedCertificates{other.byAuthority[authority]}
		if inAnyWay {
			there = append(there, &other.certificates)
		}
		all = append(all, of.beyond(" of authority "+authority.fingerprint(), there...)...)
	}
	slices.Sort(all)
	return all
}

// fingerprint is what ssh-keygen -l prints of a key.
func (h keyHash) fingerprint() string { return "SHA256:" + base64.RawStdEncoding.EncodeToString(h[:]) }

func (r *revokedCertificates) beyond(of string, others ...*revokedCertificates) []string {
	serials, ids := r.serials, maps.Clone(r.ids)
	for _, other := range others {
		if other != nil {
			serials = serialsBeyond(serials, other.serials)
			maps.DeleteFunc(ids, func(id string, _ bool) bool { return other.ids[id] })
		}
	}
	var all []string
	for _, s := range serials {
		text := fmt.Sprintf("serial %d", s.first)
		if s.last != s.first {
			text = fmt.Sprintf("serials %d-%d", s.first, s.last)
		}
		all = append(all, "certificate with "+text+of)
	}
	for id := range ids {
		all = append(all, "certificate with id "+idText(id)+of)
	}
	return all
}

// serialsBeyond returns what is in a list and not in another one. Both are sealed.
func serialsBeyond(list, other []serialRange) []serialRange {
	var left []serialRange
	for _, s := range list {
		for len(other) > 0 && other[0].last < s.first {
			other = other[1:]
		}
		rest := true
		for _, o := range other {
			if o.first > s.last {
				break
			}
			if o.first > s.first {
				left = append(left, serialRange{s.first, o.first - 1})
			}
			if rest = o.last < s.last; !rest {
				break
			}
			s.first = o.last + 1
		}
		if rest {
			left = append(left, s)
		}
	}
	return left
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
	switch was, is := c.old.SSH.HostCertificate, c.next.SSH.HostCertificate; {
	case was == is || was != nil && is != nil && sameKey(was.Certificate, is.Certificate): // of which the text has a part
	case next == "":
		c.add(AreaTrust, Loses, "the host key", "has no certificate any more: clients that trust its authority no longer know the proxy")
	case old == "":
		c.add(AreaTrust, Gains, "the host key", "has a certificate: %s", next)
	default:
		c.add(AreaTrust, Changes, "the host key", "has another certificate: %s; that was %s", next, old)
	}
}
