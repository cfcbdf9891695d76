package policy

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"
)

// HostCertificate is an authority's word that a key is that of some hosts.
// Clients that trust the authority need no other line about them.
type HostCertificate struct {
	Certificate *ssh.Certificate
	// File is where it was read.
	File string
}

const maxCertificateBytes = 64 << 10

// hostCertificate reads the name of a certificate for the proxy's host key, and
// the certificate. That its time is over is no mistake: otherwise a policy could
// not be loaded again, to keep somebody out, because of a date.
func (d *decoder) hostCertificate(n *yaml.Node) {
	path, ok := d.keyFile(n)
	if !ok {
		return
	}
	text, mode, err := d.disk.read(path, maxCertificateBytes)
	switch {
	case err != nil:
		err = refuse(d.signHint(), "host_certificate: %v", err)
	case mode&othersMayWrite != 0:
		err = refuse("chmod o-w "+path, "everybody may write %s (mode %#o)", path, mode)
	}
	var cert *ssh.Certificate
	if err == nil {
		cert, err = d.parseHostCertificate(path, string(text))
	}
	if err != nil {
		d.mistake(n, hintOf(err), "%v", err)
		return
	}
	d.pol.SSH.HostCertificate = &HostCertificate{cert, path}
}

func (d *decoder) parseHostCertificate(path, text string) (*ssh.Certificate, error) {
	key, options, err := parseKeyLine(text)
	if err != nil || len(options) > 0 {
		return nil, refuse(d.signHint(), "%s is not a certificate", path)
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return nil, refuse(d.signHint(), "%s is a public key, not a certificate", path)
	}
	if err := checkHostCertificate(cert); err != nil {
		return nil, refuse(d.signHint(), "host certificate %s: %v", path, err)
	}
	if own := hostKeyOf(d.disk, d.pol.StateDir); own != nil && !sameKey(own, cert.Key) {
		return nil, refuse(d.signHint(), "host certificate %s is for the key %s, and the proxy's is %s", path, Fingerprint(cert), ssh.FingerprintSHA256(own))
	}
	return cert, nil
}

// checkHostCertificate looks at all but the time.
func checkHostCertificate(cert *ssh.Certificate) error {
	switch {
	case cert.CertType != ssh.HostCert:
		return errors.New("it is for users, not for hosts")
	case len(cert.CriticalOptions) > 0:
		return errors.New("it has critical options, of which clients know none for hosts")
	case cert.ValidAfter >= cert.ValidBefore:
		return errors.New("there is no time at which it counts")
	}
	if err := checkKey(cert.SignatureKey); err != nil {
		return fmt.Errorf("its authority: %w", err)
	}
	if err := checkCertificate(cert, certificateTime(cert.ValidAfter)); err != nil {
		return err
	}
	return checkSignature(cert)
}

// signHint says how the certificate is made, on the authority's machine.
func (d *decoder) signHint() string {
	return "ssh-keygen -s CA -h -I nixbastion -n HOST -V +52w " + hostKeyFile +
		"\nwith a copy of " + filepath.Join(d.pol.StateDir, hostKeyFile) + ", and HOST as clients write it"
}

// Fault says why clients would refuse the certificate for a host key at a time,
// nil if they would not.
func (c *HostCertificate) Fault(key ssh.PublicKey, now time.Time) error {
	if !sameKey(key, c.Certificate.Key) {
		return fmt.Errorf("host certificate %s is for the key %s, and the host key is %s", c.File, Fingerprint(c.Certificate), ssh.FingerprintSHA256(key))
	}
	if err := checkCertificate(c.Certificate, now); err != nil {
		return fmt.Errorf("host certificate %s: %w", c.File, err)
	}
	return nil
}

// Until returns when the certificate ends to count. It may be thousands of years
// away.
func (c *HostCertificate) Until() time.Time { return certificateTime(c.Certificate.ValidBefore) }

// names reports whether clients take the certificate for a host. For them its
// principals are patterns.
func (c *HostCertificate) names(host string) bool {
	matches := func(name string) bool { return glob(strings.ToLower(name), strings.ToLower(host)) }
	hosts := c.Certificate.ValidPrincipals
	return len(hosts) == 0 || slices.ContainsFunc(hosts, matches)
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// hostKeyOf returns the public half of the proxy's host key, nil if there is none
// yet or it is kept from us.
func hostKeyOf(disk disk, stateDir string) ssh.PublicKey {
	text, _, err := disk.read(filepath.Join(stateDir, hostKeyFile), maxHostKeyBytes)
	if err != nil {
		return nil
	}
	key, _, err := parseKeyLine(string(text))
	if err != nil {
		return nil
	}
	return key
}

func keyLine(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}
