package policy

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"

	"golang.org/x/crypto/ssh"
)

// revocations are keys and certificates that open nothing any more. A nil one
// revokes nothing. It is looked into for every key that anybody offers, so all
// of it is a look-up.
type revocations struct {
	keys map[keyHash]bool
	// certificates are those of any authority, byAuthority those of one.
	certificates revokedCertificates
	byAuthority  map[keyHash]*revokedCertificates
}

// keyHash is the SHA-256 of a key's wire form, which its fingerprint shows.
type keyHash [sha256.Size]byte

func hashOf(key ssh.PublicKey) keyHash { return sha256.Sum256(key.Marshal()) }

type revokedCertificates struct {
	serials []serialRange // by their first, with gaps between once sealed
	ids     map[string]bool
}

// serialRange has both its ends.
type serialRange struct{ first, last uint64 }

func newRevocations() *revocations {
	return &revocations{keys: map[keyHash]bool{}, byAuthority: map[keyHash]*revokedCertificates{}}
}

// hasKey reports whether a plain key is revoked.
func (r *revocations) hasKey(key ssh.PublicKey) bool { return r != nil && r.keys[hashOf(key)] }

// certificate returns why a certificate is revoked, "" if it is not. With a key
// all certificates for it go, and all that it has signed.
func (r *revocations) certificate(cert *ssh.Certificate) string {
	switch {
	case r == nil:
		return ""
	case r.hasKey(cert.Key):
		return "the key is revoked"
	case r.hasKey(cert.SignatureKey):
		return fmt.Sprintf("its authority %s is revoked", ssh.FingerprintSHA256(cert.SignatureKey))
	}
	if why := r.certificates.why(cert); why != "" {
		return why
	}
	return r.byAuthority[hashOf(cert.SignatureKey)].why(cert)
}

func (r *revokedCertificates) why(cert *ssh.Certificate) string {
	switch {
	case r == nil:
		return ""
	case r.ids[cert.KeyId]:
		return fmt.Sprintf("its key id %s is revoked", idText(cert.KeyId))
	case r.hasSerial(cert.Serial):
		return fmt.Sprintf("its serial %d is revoked", cert.Serial)
	}
	return ""
}

func (r *revokedCertificates) hasSerial(serial uint64) bool {
	i, found := slices.BinarySearchFunc(r.serials, serial, func(s serialRange, serial uint64) int { return cmp.Compare(s.first, serial) })
	return found || i > 0 && r.serials[i-1].last >= serial
}

// seal brings the serials into the form in which they are looked up.
func (r *revocations) seal() {
	r.certificates.seal()
	for _, certificates := range r.byAuthority {
		certificates.seal()
	}
}

func (r *revokedCertificates) seal() {
	slices.SortFunc(r.serials, func(a, b serialRange) int { return cmp.Compare(a.first, b.first) })
	merged := r.serials[:0]
	for _, s := range r.serials {
		if n := len(merged); n > 0 && s.first-1 <= merged[n-1].last { // 0 is no serial
			merged[n-1].last = max(merged[n-1].last, s.last)
			continue
		}
		merged = append(merged, s)
	}
	r.serials = merged
}

func (r *revokedCertificates) revokeID(id string) {
	if r.ids == nil {
		r.ids = map[string]bool{}
	}
	r.ids[id] = true
}
