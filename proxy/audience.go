package proxy

import (
	"slices"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// Who vouches for a path and who may see it, by the policy of now.

// grantOf says how a path enters the cache for a domain, given those of its
// signatures that verifiedBy returned and who vouches for it without them. One of a
// trusted key counts more, that of a public key opens the path to everybody, and so
// does a domain that shares.
func grantOf(pol *policy.Policy, domain string, verified []nix.Signature, vouched cache.Provenance) cache.Grant {
	grant := cache.Grant{Domain: domain, Provenance: vouched, Public: shares(pol, domain)}
	if len(verified) > 0 {
		grant.Provenance = max(vouched, cache.Signed)
	}
	for _, key := range pol.TrustedPublicKeys {
		signed := slices.ContainsFunc(verified, func(sig nix.Signature) bool { return sig.Name() == key.Name() })
		grant.Public = grant.Public || signed && key.Public
	}
	return grant
}

// Believed returns what may be believed of a path that somebody claims, and how it
// enters the cache for a domain, given who vouches for it without a signature. The
// cache takes it only with the bytes that are claimed.
func Believed(pol *policy.Policy, domain string, claimed *nix.PathInfo, vouched cache.Provenance) (*nix.PathInfo, cache.Grant) {
	info := claimed.Clone()
	info.Ultimate = false // a peer's word for its own trust
	info.Sigs = verifiedBy(pol.TrustedPublicKeys, claimed, claimed.Sigs)
	return info, grantOf(pol, domain, info.Sigs, vouched)
}

// shares reports whether every domain may see what this one vouches for. The cache
// keeps what is only claimed to the domain all the same.
func shares(pol *policy.Policy, domain string) bool {
	dom := pol.DomainNamed(domain)
	return dom != nil && dom.Share == policy.SharePublic
}

// withoutForgeries returns info without signatures under the name of a trusted key
// that it did not make. Others pass: whose they are is not known here.
func withoutForgeries(keys []policy.TrustedKey, info *nix.PathInfo) *nix.PathInfo {
	if len(info.Sigs) == 0 {
		return info
	}
	fingerprint := info.Fingerprint()
	honest := info.Clone()
	honest.Sigs = slices.DeleteFunc(honest.Sigs, func(sig nix.Signature) bool {
		return slices.ContainsFunc(keys, func(key policy.TrustedKey) bool {
			return key.Name() == sig.Name() && !key.Verify(fingerprint, sig)
		})
	})
	return honest
}
