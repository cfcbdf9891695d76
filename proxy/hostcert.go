package proxy

import (
	"bytes"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// expirySoon is how long before its end a host certificate is warned of.
const expirySoon = 14 * 24 * time.Hour

// hostSigners are what a connection may choose from as our host key: the plain
// keys, and a key with its certificate, if there is one now. Clients that know
// the plain key go on to take it.
func (f *Front) hostSigners() []ssh.Signer {
	if f.hostCert == nil {
		return f.hostKeys
	}
	cert := f.hostCert()
	if cert == nil {
		return f.hostKeys
	}
	for _, key := range f.hostKeys {
		if !bytes.Equal(key.PublicKey().Marshal(), cert.Key.Marshal()) {
			continue
		}
		if certified, err := ssh.NewCertSigner(cert, key); err == nil {
			return append(f.hostKeys[:len(f.hostKeys):len(f.hostKeys)], certified)
		}
	}
	return f.hostKeys
}

// checkHostCertificate refuses to start with a certificate that clients would
// refuse; nil is none.
func checkHostCertificate(cert *policy.HostCertificate, key ssh.PublicKey) error {
	if cert == nil {
		return nil
	}
	return cert.Fault(key, time.Now())
}

// hostCertificate returns what the policy has, and nil when its time is over: a
// client that trusts the authority would turn away from it, and not from the
// plain key.
func (p *Proxy) hostCertificate() *ssh.Certificate {
	cert := p.policy.Current().SSH.HostCertificate
	if cert == nil || cert.Fault(cert.Certificate.Key, time.Now()) != nil {
		return nil
	}
	return cert.Certificate
}

// warnOfHostCertificate says when a certificate is not shown, or not for long.
func (p *Proxy) warnOfHostCertificate() {
	cert := p.policy.Current().SSH.HostCertificate
	if cert == nil {
		return
	}
	if err := checkHostCertificate(cert, p.front.hostKeys[0].PublicKey()); err != nil {
		p.log.Warn("host certificate not shown", "reason", err.Error())
	} else if until := cert.Until(); time.Until(until) < expirySoon {
		p.log.Warn("host certificate expires soon", "file", cert.File, "until", until.UTC())
	}
}
