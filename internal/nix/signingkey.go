package nix

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// SigningKey signs path infos. It has no String that shows the secret, so that
// it may stand in a log by mistake.
type SigningKey struct {
	name string
	key  ed25519.PrivateKey
}

// GenerateSigningKey makes a new key.
func GenerateSigningKey(name string) (SigningKey, error) {
	if err := checkKeyName(name); err != nil {
		return SigningKey{}, err
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return SigningKey{}, fmt.Errorf("generate key %s: %w", name, err)
	}
	return SigningKey{name: name, key: key}, nil
}

// ParseSigningKey parses the content of a secret key file as Nix writes it:
// "name:base64 of 64 bytes", seed and public key. Space around it is ignored.
// Errors do not quote the content, nor what stands where the name should: that
// may be the secret.
func ParseSigningKey(s string) (SigningKey, error) {
	name, text, _ := strings.Cut(strings.TrimSpace(s), ":")
	if err := checkKeyName(name); err != nil {
		return SigningKey{}, err
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != ed25519.PrivateKeySize {
		return SigningKey{}, fmt.Errorf("secret key does not have %d bytes of base64 behind its name and a ':'", ed25519.PrivateKeySize)
	}
	key := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	if !bytes.Equal(key, raw) {
		return SigningKey{}, errors.New("secret key does not fit its public half")
	}
	return SigningKey{name: name, key: key}, nil
}

// checkKeyName refuses names that would end a word or a line of the files that
// they stand in.
func checkKeyName(name string) error {
	bad := func(r rune) bool { return r == ':' || unicode.IsSpace(r) || unicode.IsControl(r) }
	if name == "" || strings.ContainsFunc(name, bad) {
		return errors.New("key has no name before a ':', or one with spaces")
	}
	return nil
}

// Name returns the key's name.
func (k SigningKey) Name() string { return k.name }

// IsZero reports whether there is no key.
func (k SigningKey) IsZero() bool { return k.key == nil }

// Secret returns the form that ParseSigningKey reads, without a newline.
func (k SigningKey) Secret() string {
	return k.name + ":" + base64.StdEncoding.EncodeToString(k.key)
}

// String returns the name alone.
func (k SigningKey) String() string { return k.name }

// GoString returns the name alone.
func (k SigningKey) GoString() string { return fmt.Sprintf("nix.SigningKey(%q)", k.name) }

// Public returns the public half.
func (k SigningKey) Public() PublicKey {
	return PublicKey{name: k.name, key: k.key.Public().(ed25519.PublicKey)}
}

// Sign signs a text, which is the fingerprint of a [PathInfo] or [Realisation].
func (k SigningKey) Sign(fingerprint string) Signature {
	s := Signature{name: k.name}
	copy(s.sig[:], ed25519.Sign(k.key, []byte(fingerprint)))
	return s
}
