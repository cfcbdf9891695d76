package upstream

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
)

// maxKnownHosts is the largest known_hosts file that is read, in bytes.
const maxKnownHosts = 4 << 20

// certAlgorithms are those of host certificates. An authority signs keys of any
// type, so its own says nothing about them.
var certAlgorithms = []string{
	ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
	ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
}

// authorityAlgorithms are those that an authority may have signed with: as
// everywhere, nothing that rests on SHA-1.
var authorityAlgorithms = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
}

// knownHost is what a known_hosts file has for one host. The library finds the
// lines for it and those that revoke; what they mean is decided here, since it
// knows neither patterns in certificates nor certificates that name no host.
type knownHost struct {
	address string // with port
	keys    []knownhosts.PublicKey
	file    ssh.HostKeyCallback
}

// knownKeys reads a known_hosts file; address has a port.
func knownKeys(file, address string) (*hostCheck, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("read known hosts: %w", err)
	}
	if info.Size() > maxKnownHosts {
		return nil, fmt.Errorf("read known hosts: %s is larger than %d bytes", file, maxKnownHosts)
	}
	db, err := knownhosts.NewDB(file)
	if err != nil {
		return nil, fmt.Errorf("read known hosts: %w", err)
	}
	k := &knownHost{address: address, keys: db.HostKeys(address), file: db.HostKeyCallback()}
	return k.hostCheck()
}

func (k *knownHost) hostCheck() (*hostCheck, error) {
	h := &hostCheck{check: func(_ string, _ net.Addr, shown ssh.PublicKey) error { return k.check(shown) }}
	for _, key := range k.keys {
		if !key.Cert {
			h.accept(key.Type())
			continue
		}
		for _, name := range certAlgorithms {
			h.accept(name)
		}
	}
	return h.usable()
}

func (k *knownHost) check(shown ssh.PublicKey) error {
	cert, isCert := shown.(*ssh.Certificate)
	if !isCert {
		return k.checkKey(shown)
	}
	for _, key := range []ssh.PublicKey{cert.Key, cert.SignatureKey} {
		if k.revoked(key) {
			return revokedKey(key)
		}
	}
	// As for OpenSSH, a key on file needs no certificate.
	if k.has(cert.Key, false) {
		return nil
	}
	return k.checkCertificate(cert)
}

func (k *knownHost) checkKey(shown ssh.PublicKey) error {
	switch {
	case k.revoked(shown):
		return revokedKey(shown)
	case !k.has(shown, false):
		return unknownKey(shown)
	}
	return nil
}

// has reports whether a line for the host has a key, as an authority or as the
// host's own.
func (k *knownHost) has(key ssh.PublicKey, authority bool) bool {
	return slices.ContainsFunc(k.keys, func(known knownhosts.PublicKey) bool {
		return known.Cert == authority && sameKey(known.PublicKey, key)
	})
}

// revoked reports whether any line revokes a key, for whatever host.
func (k *knownHost) revoked(key ssh.PublicKey) bool {
	var revoked *xknownhosts.RevokedError
	return errors.As(k.file(k.address, &net.TCPAddr{}, key), &revoked)
}

func (k *knownHost) checkCertificate(cert *ssh.Certificate) error {
	authority := ssh.FingerprintSHA256(cert.SignatureKey)
	switch {
	case cert.CertType != ssh.HostCert:
		return errors.New("it shows a certificate that is not one for hosts")
	case !k.has(cert.SignatureKey, true):
		return fmt.Errorf("it shows a certificate of the authority %s, which is not on file for it", authority)
	case !slices.Contains(authorityAlgorithms, cert.Signature.Format):
		return fmt.Errorf("it shows a certificate that its authority %s signed with %q, which is not safe", authority, cert.Signature.Format)
	case len(cert.ValidPrincipals) == 0:
		return errors.New("it shows a certificate that names no host, and so would stand for any")
	}
	// Its names are compared below, once they are known to be the authority's: so
	// it is checked for one of them. Without names of options every critical one
	// is refused: none is defined for hosts.
	if err := new(ssh.CertChecker).CheckCert(cert.ValidPrincipals[0], cert); err != nil {
		return fmt.Errorf("it shows a certificate of the authority %s that does not hold: %w", authority, err)
	}
	return k.checkNames(cert)
}

func (k *knownHost) checkNames(cert *ssh.Certificate) error {
	host, _, err := net.SplitHostPort(k.address)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(cert.ValidPrincipals, func(name string) bool { return matchesPattern(host, name) }) {
		return fmt.Errorf("it shows a certificate for %q, which is not for %q", cert.ValidPrincipals, host)
	}
	return nil
}

// matchesPattern compares with a pattern as OpenSSH has them: "*" stands for any
// characters, "?" for one. Names of hosts have no case.
func matchesPattern(host, pattern string) bool {
	expression := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(pattern))
	matches, err := regexp.MatchString("(?i)^(?:"+expression+")$", host)
	return matches && err == nil
}

func revokedKey(key ssh.PublicKey) error {
	return fmt.Errorf("it shows the %s key %s, which is revoked", key.Type(), ssh.FingerprintSHA256(key))
}
