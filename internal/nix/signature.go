package nix

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Signature is a named ed25519 signature of a path's fingerprint. Only
// [ParseSignature] makes one, so one that exists has 64 bytes. Comparable.
type Signature struct {
	name string
	sig  [ed25519.SignatureSize]byte
}

// ParseSignature parses "name:base64". Some Nix versions refuse a whole path
// for one malformed signature, so what does not parse is never passed on.
func ParseSignature(s string) (Signature, error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok || name == "" {
		return Signature{}, fmt.Errorf("signature %q has no key name", clip(s))
	}
	if strings.ContainsFunc(name, unicode.IsControl) { // a line of its own in a narinfo file
		return Signature{}, fmt.Errorf("signature %q has a control character in its key name", clip(s))
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return Signature{}, fmt.Errorf("signature %q: %w", clip(s), err)
	}
	sig := Signature{name: name}
	if len(raw) != len(sig.sig) {
		return Signature{}, fmt.Errorf("signature %q has %d bytes, not %d", clip(s), len(raw), len(sig.sig))
	}
	copy(sig.sig[:], raw)
	return sig, nil
}

// Name returns the name of the key.
func (s Signature) Name() string { return s.name }

// String returns the form that ParseSignature reads.
func (s Signature) String() string { return s.name + ":" + base64.StdEncoding.EncodeToString(s.sig[:]) }

// PublicKey verifies signatures of its name.
type PublicKey struct {
	name string
	key  ed25519.PublicKey
}

// ParsePublicKey parses "name:base64 of 32 bytes".
func ParsePublicKey(s string) (PublicKey, error) {
	name, text, ok := strings.Cut(strings.TrimSpace(s), ":")
	if !ok || name == "" {
		return PublicKey{}, errors.New("public key has no name")
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return PublicKey{}, fmt.Errorf("public key %q is not %d bytes of base64", clip(name), ed25519.PublicKeySize)
	}
	return PublicKey{name: name, key: raw}, nil
}

// Name returns the key's name.
func (k PublicKey) Name() string { return k.name }

// String returns the form that ParsePublicKey reads.
func (k PublicKey) String() string { return k.name + ":" + base64.StdEncoding.EncodeToString(k.key) }

// Verify reports whether sig is this key's signature of the fingerprint.
func (k PublicKey) Verify(fingerprint string, sig Signature) bool {
	return sig.name == k.name && len(k.key) == ed25519.PublicKeySize &&
		ed25519.Verify(k.key, []byte(fingerprint), sig.sig[:])
}
