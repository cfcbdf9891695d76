package policy

import (
	"slices"
	"strings"
)

// signing says which keys sign for a domain, what they sign, and what that lets
// its full keys do to those who trust them.
func (t *description) signing(dom *Domain, full []*grant) {
	if len(dom.SigningKeys) == 0 {
		t.line(1, "signs nothing (no signing_keys): clients that check signatures take from it only what others have signed")
		return
	}
	if dom.Sign == SignNone {
		t.line(1, "signs nothing (sign: none), though it has signing_keys")
		return
	}
	keys := keyNames(dom.PublicKeys())
	verb := "signs"
	if len(keys) > 1 {
		verb = "sign, each of them,"
	}
	who := keyWord(keys) + " " + strings.Join(keys, " and ")
	if dom.Sign == SignProven {
		t.line(1, "%s %s what is proven (sign: proven): by its content, by a trusted signature, or by a build whose plan and inputs are proven", who, verb)
		t.line(1, "What only the full keys of this domain vouch for is not signed.")
		return
	}
	t.line(1, "%s %s all that this domain vouches for (sign: domain): what was built for it and what is proven, but not what was merely uploaded", who, verb)
	if len(full) > 0 {
		t.line(1, "%s can plant any path for everyone who trusts %s.", eachFull(full), trustText(keys))
	}
}

func keyWord(keys []string) string {
	if len(keys) == 1 {
		return "key"
	}
	return "keys"
}

func trustText(keys []string) string {
	if len(keys) == 1 {
		return "key " + keys[0]
	}
	return "one of the keys " + strings.Join(keys, ", ")
}

// signingWarnings name signing keys that open more than their domain.
func (t *description) signingWarnings(warn func(format string, args ...any)) {
	for i := range t.pol.Domains {
		dom := &t.pol.Domains[i]
		for _, key := range dom.PublicKeys() {
			if len(t.pol.Domains) > 1 && slices.ContainsFunc(t.pol.TrustedPublicKeys, func(k TrustedKey) bool { return k.String() == key.String() }) {
				warn("key %s is among trusted_public_keys: what domain %s signs with it is proven for every domain", key.Name(), dom.Name)
			}
		}
	}
}

// substituters prints the lines with which clients take what a domain signs.
func (t *description) substituters(host string) {
	for i := range t.pol.Domains {
		dom := &t.pol.Domains[i]
		if keys := dom.PublicKeys(); len(keys) > 0 && t.pol.hasPrincipal(dom.Name) {
			t.line(0, "\nFor clients that fetch from domain %s, in /etc/nix/nix.conf:", dom.Name)
			t.line(1, "%s", SubstituterLine(storeURI(host)))
			t.line(1, "%s", TrustedKeysLine(keyTexts(keys)))
		}
	}
}

func (p *Policy) hasPrincipal(domain string) bool {
	return slices.ContainsFunc(p.Principals, func(q Principal) bool { return q.Domain == domain })
}

// SubstituterLine is the line of nix.conf by which a client fetches from a store,
// asked after cache.nixos.org.
func SubstituterLine(store string) string { return "extra-substituters = " + store + "?priority=50" }

// TrustedKeysLine is the line of nix.conf by which a client trusts public keys, each
// in the form "name:base64".
func TrustedKeysLine(keys []string) string {
	return "extra-trusted-public-keys = " + strings.Join(keys, " ")
}
