package policy

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// What certificates have to say beyond a key. As with sshd a critical option that
// is not known is a reason to refuse, an extension that is not known means
// nothing.
const (
	optionForceCommand  = "force-command"
	optionSourceAddress = "source-address"
	extensionForwarding = "permit-port-forwarding"
	extensionNoTouch    = "no-touch-required"
)

const (
	// maxCertificateNames is how many principals a certificate may have; ssh-keygen
	// makes no more either.
	maxCertificateNames = 256
	// maxOptionBytes bounds the value of an option.
	maxOptionBytes = 4 << 10
	// maxKeyIDBytes is how much of a key id gets into logs.
	maxKeyIDBytes = 128
)

// certificateSignatures are the algorithms by which certificates may be signed:
// those of keyTypes, and for RSA no SHA-1.
var certificateSignatures = map[string]bool{
	ssh.KeyAlgoED25519: true, ssh.KeyAlgoSKED25519: true, ssh.KeyAlgoSKECDSA256: true,
	ssh.KeyAlgoECDSA256: true, ssh.KeyAlgoECDSA384: true, ssh.KeyAlgoECDSA521: true,
	ssh.KeyAlgoRSASHA256: true, ssh.KeyAlgoRSASHA512: true,
}

// certified returns what a user certificate opens if its signature is good, which
// is not looked at here. It was shown at a time, maybe earlier than now.
func (p *Policy) certified(cert *ssh.Certificate, remote netip.Addr, now, shown time.Time) (*Access, error) {
	lines := p.authorities[string(cert.SignatureKey.Marshal())]
	if len(lines) == 0 {
		return nil, fmt.Errorf("its authority %s is not in the policy", ssh.FingerprintSHA256(cert.SignatureKey))
	}
	if err := checkUserCertificate(cert, shown); err != nil {
		return nil, err
	}
	if why := p.revoked.certificate(cert); why != "" {
		return nil, errors.New(why)
	}
	own, err := certificateOptions(cert)
	if err != nil {
		return nil, err
	}
	if err := own.usable(remote, now); err != nil {
		return nil, err
	}
	line, err := lineFor(lines, cert.ValidPrincipals, remote, now)
	if err != nil {
		return nil, err
	}
	return line.narrowedBy(cert, own)
}

// checkUserCertificate looks at all that does not depend on the policy. A
// certificate without principals would be one for everybody.
func checkUserCertificate(cert *ssh.Certificate, now time.Time) error {
	switch names := len(cert.ValidPrincipals); {
	case cert.CertType != ssh.UserCert:
		return errors.New("it is not for users")
	case names == 0:
		return errors.New("it has no principals (ssh-keygen -n)")
	case names > maxCertificateNames:
		return fmt.Errorf("it has more than %d principals", maxCertificateNames)
	}
	if err := checkKey(cert.Key); err != nil {
		return err
	}
	return checkCertificate(cert, now)
}

// checkCertificate looks at what user and host certificates have in common.
func checkCertificate(cert *ssh.Certificate, now time.Time) error {
	if !certificateSignatures[cert.Signature.Format] {
		return fmt.Errorf("it is signed with %s, which is not accepted", quote(cert.Signature.Format))
	}
	if from := certificateTime(cert.ValidAfter); now.Before(from) {
		return fmt.Errorf("it counts from %s", timeText(from))
	}
	if until := certificateTime(cert.ValidBefore); !now.Before(until) {
		return fmt.Errorf("it expired on %s", timeText(until))
	}
	return nil
}

// certificateTime bounds what certificates say to what has a year of four digits.
// The largest number stands for ever.
func certificateTime(seconds uint64) time.Time {
	const lastSecond = 253402300799 // of the year 9999
	return time.Unix(int64(min(seconds, lastSecond)), 0)
}

// certificateOptions reads what a certificate itself narrows.
func certificateOptions(cert *ssh.Certificate) (keyOptions, error) {
	var o keyOptions
	for _, name := range slices.Sorted(maps.Keys(cert.CriticalOptions)) {
		value := cert.CriticalOptions[name]
		if len(value) > maxOptionBytes {
			return o, fmt.Errorf("its critical option %s is longer than %d bytes", quote(name), maxOptionBytes)
		}
		if err := o.critical(name, value); err != nil {
			return o, err
		}
	}
	if _, lax := cert.Extensions[extensionNoTouch]; lax && isSecurityKey(cert.Key) {
		return o, fmt.Errorf("it lets its security key go untouched (%s)", extensionNoTouch)
	}
	_, forwards := cert.Extensions[extensionForwarding]
	o.noJump = !forwards
	return o, nil
}

func (o *keyOptions) critical(name, value string) (err error) {
	switch name {
	case optionSourceAddress:
		o.from, err = parseSourceAddress(value)
		return err
	case optionForceCommand:
		command, ok := forcedCommand(value)
		if !ok {
			return fmt.Errorf("its force-command %s is not a command of Nix's protocols", quote(value))
		}
		o.command = command
		return nil
	}
	return fmt.Errorf("its critical option %s is not known here", quote(name))
}

// parseSourceAddress reads addresses and networks. As with sshd there are no
// other patterns, and one that is wrong makes all of it wrong.
func parseSourceAddress(value string) (fromList, error) {
	var all fromList
	for text := range strings.SplitSeq(value, ",") {
		p, err := parseFromPattern(text)
		if err != nil || p.negated || !p.prefix.IsValid() {
			return nil, fmt.Errorf("its source-address has %s, which is neither an address nor a network", quote(text))
		}
		all = append(all, p)
	}
	return all, nil
}

func isSecurityKey(key ssh.PublicKey) bool {
	return key.Type() == ssh.KeyAlgoSKED25519 || key.Type() == ssh.KeyAlgoSKECDSA256
}

// lineFor finds the line of an authority that counts for a certificate with
// names: the first that lets it in now. Names of several principals are refused,
// as nobody could say whose rights they give.
func lineFor(lines []*grant, names []string, remote netip.Addr, now time.Time) (*grant, error) {
	var found *grant
	var owner *Principal
	var firstErr error
	for _, line := range lines {
		if !slices.ContainsFunc(line.principals, func(name string) bool { return slices.Contains(names, name) }) {
			continue
		}
		if owner != nil && owner != line.principal {
			return nil, fmt.Errorf("it has names of principal %s and of principal %s", owner.Name, line.principal.Name)
		}
		owner = line.principal
		err := line.usable(remote, now)
		switch {
		case err == nil && found == nil:
			found = line
		case err != nil && firstErr == nil:
			firstErr = fmt.Errorf("authority %s %w", line.fingerprint, err)
		}
	}
	switch {
	case owner == nil:
		return nil, fmt.Errorf("none of its principals is listed for its authority %s", lines[0].fingerprint)
	case found == nil:
		return nil, firstErr
	}
	return found, nil
}

// narrowedBy returns what is left of a line's rights in the hands of a
// certificate. As with sshd, two forced commands must be the same.
func (g *grant) narrowedBy(cert *ssh.Certificate, own keyOptions) (*Access, error) {
	a := &Access{
		Principal: g.principal, Command: g.command, PermitOpen: g.permitOpen, NoJump: g.noJump || own.noJump,
		Certificate: fmt.Sprintf("id %s serial %d authority %s", idText(cert.KeyId), cert.Serial, g.fingerprint),
	}
	switch {
	case a.Command == "":
		a.Command = own.command
	case own.command != "" && own.command != a.Command:
		return nil, fmt.Errorf("it is bound to %q and its authority's line to %q", own.command, a.Command)
	}
	return a, nil
}

// idText shows a key id, which the authority chose.
func idText(id string) string {
	if len(id) > maxKeyIDBytes {
		id = id[:maxKeyIDBytes] + "..."
	}
	return fmt.Sprintf("%+q", id)
}

// checkSignature verifies that the authority which a certificate names has signed
// it. Whether that authority counts is not looked at, nor anything else.
func checkSignature(cert *ssh.Certificate) error {
	checker := ssh.CertChecker{
		SupportedCriticalOptions: slices.Collect(maps.Keys(cert.CriticalOptions)),
		Clock:                    func() time.Time { return time.Unix(int64(min(cert.ValidAfter, math.MaxInt64)), 0) },
	}
	name := ""
	if len(cert.ValidPrincipals) > 0 {
		name = cert.ValidPrincipals[0]
	}
	if err := checker.CheckCert(name, cert); err != nil {
		return fmt.Errorf("authority %s has not signed it: %w", ssh.FingerprintSHA256(cert.SignatureKey), err)
	}
	return nil
}
