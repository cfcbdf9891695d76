package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/policy"
)

// What a client says of a path beside its bytes is kept only as far as it is
// proven: signatures that verify under a key of the policy. Others would only
// look like more than they are.

// verifiedBy returns those signatures that one of keys made over what info says
// of its path.
func verifiedBy(keys []policy.TrustedKey, info *nix.PathInfo, sigs []nix.Signature) []nix.Signature {
	if len(sigs) == 0 {
		return nil
	}
	fingerprint := info.Fingerprint()
	return slices.DeleteFunc(slices.Clone(sigs), func(sig nix.Signature) bool {
		return !slices.ContainsFunc(keys, func(key policy.TrustedKey) bool { return key.Verify(fingerprint, sig) })
	})
}

// proven returns what may be believed of a path that a client claims, given that
// the cache takes it only with the bytes that it claims, and under which name it
// enters the cache. A path that nothing proves is refused unless the client asked
// for no signature check.
func (s *session) proven(claimed *nix.PathInfo, opts nix.AddOptions) (*nix.PathInfo, cache.Grant, error) {
	pol := s.policy()
	info, grant := Believed(pol, s.domain(), claimed, s.vouched())
	if len(info.Sigs) == 0 && info.CA.IsZero() && !opts.DontCheckSigs { // the cache verifies content addresses
		return nil, cache.Grant{}, nix.Refuse("cannot add path '%s' because it lacks a signature by a trusted key; "+
			"say --no-check-sigs, sign it with one of the keys that the proxy trusts (%s), "+
			"or have the proxy's admin add the key to trusted_public_keys in its policy", info.Path, keyNames(pol.TrustedPublicKeys))
	}
	return info, grant, nil
}

// keyNames lists keys for people.
func keyNames(keys []policy.TrustedKey) string {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = key.Name()
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// AddSignatures keeps those signatures of a path that a trusted key made. It is
// refused if there is none.
func (s *session) AddSignatures(ctx context.Context, path nix.StorePath, texts []string) (err error) {
	defer func() { s.noteRefusal("add signatures", path, err) }()
	if err := s.mayWrite("sign paths"); err != nil {
		return err
	}
	info, err := s.QueryPathInfo(ctx, path)
	if err != nil {
		return err
	}
	sigs, err := parseSigs(texts)
	if err != nil {
		return err
	}
	pol := s.policy()
	trusted := verifiedBy(pol.TrustedPublicKeys, info, sigs)
	if len(trusted) == 0 {
		return s.untrustedSigs(path, sigs)
	}
	if err := s.cache.AddSignatures(ctx, info, trusted, s.grant(pol, trusted)); err != nil {
		return fmt.Errorf("sign %s: %w", path, err)
	}
	s.signaturesAdded(info, trusted)
	return nil
}

func parseSigs(texts []string) ([]nix.Signature, error) {
	sigs := make([]nix.Signature, len(texts))
	for i, text := range texts {
		sig, err := nix.ParseSignature(text)
		if err != nil {
			return nil, nix.Refuse("%v", err)
		}
		sigs[i] = sig
	}
	return sigs, nil
}

func (s *session) untrustedSigs(path nix.StorePath, sigs []nix.Signature) error {
	var names []string
	for _, sig := range sigs {
		names = append(names, quoted(sig.Name()))
	}
	return nix.Refuse("path '%s' gets no signature by %s: the proxy keeps only those that it can verify; "+
		"its admin adds the public key to trusted_public_keys in its policy (now: %s)",
		path, strings.Join(names, ", "), keyNames(s.policy().TrustedPublicKeys))
}
