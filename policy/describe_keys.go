package policy

import (
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// expirySoon is how long before its end a certificate of the proxy gets a
// warning.
const expirySoon = 14 * 24 * time.Hour

// countGrants counts keys that log in and keys that sign certificates.
func countGrants(grants []*grant) (keys, authorities int) {
	for _, g := range grants {
		if g.authority {
			authorities++
		} else {
			keys++
		}
	}
	return keys, authorities
}

func grantsText(grants []*grant) string {
	keys, authorities := countGrants(grants)
	if authorities == 0 {
		return CountOf(keys, "key")
	}
	text := CountOf(authorities, "line") + " of authorities"
	if keys > 0 {
		text = CountOf(keys, "key") + ", " + text
	}
	return text
}

// grant says what a line narrows, or whose certificates it lets in. A plain key
// that may all of what its principal may has no line of its own.
func (t *description) grant(g *grant) {
	narrow := strings.Join(g.narrowing(), ", ")
	switch {
	case g.authority:
		if narrow != "" {
			narrow = ", " + narrow
		}
		t.line(3, "certificates of authority %s with one of the principals %s%s", g.fingerprint, strings.Join(g.principals, ", "), narrow)
	case narrow != "":
		t.line(3, "its key %s %s", g.fingerprint, narrow)
	}
}

func (o *keyOptions) narrowing() []string {
	var all []string
	if o.from != nil {
		all = append(all, "only from "+o.from.String())
	}
	if !o.expiry.IsZero() {
		all = append(all, "only until "+timeText(o.expiry))
	}
	if o.command != "" {
		all = append(all, "always gets "+o.command)
	}
	switch {
	case o.noJump:
		all = append(all, "without jumps")
	case o.permitOpen != nil && len(o.permitOpen) == 0:
		all = append(all, "with jumps to nowhere")
	case o.permitOpen != nil:
		all = append(all, "with jumps only to "+targetTexts(o.permitOpen))
	}
	return all
}

func targetTexts(targets []JumpTarget) string {
	all := make([]string, len(targets))
	for i, target := range targets {
		all[i] = target.String()
	}
	return strings.Join(all, ", ")
}

// revocations says how much is revoked.
func (t *description) revocations() {
	r := t.pol.revoked
	if r == nil {
		return
	}
	serials, ids := len(r.certificates.serials), len(r.certificates.ids)
	for _, of := range r.byAuthority {
		serials, ids = serials+len(of.serials), ids+len(of.ids)
	}
	t.line(0, "%s revokes %s, %s of serials and %s.", t.pol.RevokedKeys, CountOf(len(r.keys), "key"), CountOf(serials, "range"), CountOf(ids, "key id"))
}

// keyWarnings names lines that open nothing.
func (t *description) keyWarnings(warn func(format string, args ...any)) {
	for _, q := range t.pol.Principals {
		for _, g := range t.grants[q.Name] {
			what := "key"
			if g.authority {
				what = "authority"
			}
			if g.expired(t.now) {
				warn("%s %s of principal %s expired on %s", what, g.fingerprint, q.Name, timeText(g.expiry))
			}
			if hash, err := parseFingerprint(g.fingerprint); err == nil && t.pol.revoked != nil && t.pol.revoked.keys[hash] {
				warn("%s %s of principal %s is revoked", what, g.fingerprint, q.Name)
			}
		}
	}
}

// certified says who vouches for the host key.
func (t *description) certified(c *HostCertificate) {
	if c == nil {
		return
	}
	hosts := "any host"
	if len(c.Certificate.ValidPrincipals) > 0 {
		hosts = clip(strings.Join(c.Certificate.ValidPrincipals, ", "))
	}
	t.line(0, "Its host key has a certificate of authority %s for %s, until %s.", ssh.FingerprintSHA256(c.Certificate.SignatureKey), hosts, timeText(c.Until()))
}

func (t *description) certificateWarnings(warn func(format string, args ...any)) {
	c := t.pol.SSH.HostCertificate
	if c == nil {
		return
	}
	if err := c.Fault(c.Certificate.Key, t.now); err != nil {
		warn("%v: the proxy does not start with it, and one that runs does not show it", err)
	} else if t.now.Add(expirySoon).After(c.Until()) {
		warn("host certificate %s expires on %s", c.File, timeText(c.Until()))
	}
	if len(c.Certificate.ValidPrincipals) == 0 {
		warn("host certificate %s has no principals (ssh-keygen -n): clients differ in whether they take it", c.File)
	}
}

// hostCertificate prints the line by which clients know every host of the
// authority.
func (t *description) hostCertificate(host string) {
	c := t.pol.SSH.HostCertificate
	switch {
	case c == nil:
	case c.names(host):
		t.line(0, "\nor, for clients that trust the authority of its certificate:")
		t.line(1, "%s", t.pol.certAuthority(host))
	default:
		t.line(0, "\nThe certificate of the proxy's host key is not for %s.", host)
	}
}

// fingerprint prints what ssh shows to people who connect for the first time.
func (t *description) fingerprint(hostKey string) {
	key, _, err := parseKeyLine(hostKey)
	if err != nil {
		return
	}
	t.line(0, "\nThe fingerprint of the host key, which ssh shows at the first connection:")
	t.line(1, "%s", ssh.FingerprintSHA256(key))
}
