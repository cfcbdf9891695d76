package policy

import (
	"crypto/rand"
	"crypto/rsa"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

func testSigner(name string) ssh.Signer {
	signer, err := ssh.NewSignerFromKey(testPrivateKey(name))
	if err != nil {
		panic(err)
	}
	return signer
}

// certificateOf makes a good certificate of the authority "ca" for anna's key,
// after change had its way with it.
func certificateOf(t testing.TB, change func(*ssh.Certificate)) *ssh.Certificate {
	t.Helper()
	cert := &ssh.Certificate{
		Key: testKey("anna"), Serial: 7, CertType: ssh.UserCert, KeyId: "anna@laptop", ValidPrincipals: []string{"anna"},
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{CriticalOptions: map[string]string{}, Extensions: map[string]string{"permit-pty": "", "permit-port-forwarding": ""}},
	}
	if change != nil {
		change(cert)
	}
	if cert.Signature == nil {
		signBy(t, cert, testSigner("ca"))
	}
	return fromWire(t, cert)
}

func signBy(t testing.TB, cert *ssh.Certificate, authority ssh.Signer) {
	t.Helper()
	if err := cert.SignCert(rand.Reader, authority); err != nil {
		t.Fatal(err)
	}
}

// fromWire is the certificate as a client would send it.
func fromWire(t testing.TB, cert *ssh.Certificate) *ssh.Certificate {
	t.Helper()
	key, err := ssh.ParsePublicKey(cert.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ssh.Certificate)
}

// certified is a policy with one principal and lines for it.
func (d dir) certified(t testing.TB, lines ...string) *Policy {
	t.Helper()
	d.write("anna.keys", strings.Join(lines, "\n")+"\n", 0o644)
	return d.load(t, minimal+"principals: [{name: anna, role: full, authorized_keys: anna.keys}]\n")
}

var anywhere = netip.MustParseAddr("192.0.2.7")

// refusedFor expects an error that says why, and no access.
func refusedFor(t *testing.T, pol *Policy, key ssh.PublicKey, why string) {
	t.Helper()
	access, err := pol.Identify(key, anywhere)
	if err == nil || access != nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), Fingerprint(key)) {
		t.Errorf("got %+v, %v; want a refusal with %q", access, err, why)
	}
}

// Guards against rights that a certificate gives or takes in another way than its
// authority and the authority's line say.
func TestCertificateOpensWhatItsAuthoritysLineSays(t *testing.T) {
	d := newDir(t)
	pol := d.certified(t, `cert-authority,principals="root,anna",permitopen="b1:22" `+authorizedLine("ca"), authorizedLine("otto"))
	access, err := pol.Identify(certificateOf(t, nil), anywhere)
	if err != nil {
		t.Fatal(err)
	}
	want := `id "anna@laptop" serial 7 authority ` + ssh.FingerprintSHA256(testKey("ca"))
	if access.Principal.Name != "anna" || access.Command != "" || access.NoJump || len(access.PermitOpen) != 1 || access.Certificate != want {
		t.Errorf("got %+v", access)
	}
	for name, key := range map[string]ssh.PublicKey{"the key without its certificate": testKey("anna"), "the authority's own key": testKey("ca")} {
		if access, err := pol.Identify(key, anywhere); err == nil {
			t.Errorf("%s opens %+v", name, access)
		}
	}
}

// Guards against certificates that are good in form and not for us: each has one
// thing wrong with it.
func TestCertificatesThatAreRefused(t *testing.T) {
	d := newDir(t)
	pol := d.certified(t, `cert-authority,principals="anna,otto" `+authorizedLine("ca"))
	critical := func(name, value string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.CriticalOptions[name] = value }
	}
	far := uint64(1) << 63
	for name, c := range map[string]struct {
		change func(*ssh.Certificate)
		why    string
	}{
		"another authority":      {func(c *ssh.Certificate) { signBy(t, c, testSigner("other")) }, "is not in the policy"},
		"itself":                 {func(c *ssh.Certificate) { signBy(t, c, testSigner("anna")) }, "is not in the policy"},
		"for hosts":              {func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, "not for users"},
		"of no type":             {func(c *ssh.Certificate) { c.CertType = 0 }, "not for users"},
		"no principals":          {func(c *ssh.Certificate) { c.ValidPrincipals = nil }, "no principals"},
		"another principal":      {func(c *ssh.Certificate) { c.ValidPrincipals = []string{"eva", "ANNA", "anna ", ""} }, "none of its principals"},
		"many principals":        {func(c *ssh.Certificate) { c.ValidPrincipals = append(make([]string, 256), "anna") }, "more than 256"},
		"expired":                {func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Unix()) }, "expired on"},
		"long ago":               {func(c *ssh.Certificate) { c.ValidBefore = 0 }, "expired on 1970"},
		"not yet":                {func(c *ssh.Certificate) { c.ValidAfter = uint64(time.Now().Add(time.Minute).Unix()) }, "counts from"},
		"from never":             {func(c *ssh.Certificate) { c.ValidAfter = far }, "counts from 9999"},
		"from never, for ever":   {func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = far, ssh.CertTimeInfinity }, "counts from 9999"},
		"unknown critical":       {critical("x@example.org", ""), `critical option "x@example.org"`},
		"a PIN":                  {critical("verify-required", ""), `critical option "verify-required"`},
		"another command":        {critical("force-command", "/bin/sh"), "force-command"},
		"no command":             {critical("force-command", ""), "force-command"},
		"a command and more":     {critical("force-command", "nix-daemon --stdio; id"), "force-command"},
		"another address":        {critical("source-address", "192.0.2.8,10.0.0.0/8"), "must not be used from 192.0.2.7"},
		"no address":             {critical("source-address", ""), "source-address"},
		"a pattern of address":   {critical("source-address", "192.0.2.*"), "source-address"},
		"a negated address":      {critical("source-address", "!10.0.0.1,192.0.2.7"), "source-address"},
		"one broken address":     {critical("source-address", "192.0.2.7,x"), "source-address"},
		"address beyond mask":    {critical("source-address", "192.0.2.7/24"), "source-address"},
		"a long list":            {critical("source-address", strings.Repeat("192.0.2.7,", 500)+"192.0.2.7"), "longer than"},
		"signed over other data": {func(c *ssh.Certificate) { signBy(t, c, testSigner("ca")); c.Serial++ }, "has not signed it"},
		"signature of another": {func(c *ssh.Certificate) {
			signBy(t, c, testSigner("other"))
			c.SignatureKey = testKey("ca")
		}, "has not signed it"},
		"nobody's signature": {func(c *ssh.Certificate) {
			signBy(t, c, testSigner("ca"))
			c.Signature = &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: make([]byte, 64)}
		}, "has not signed it"},
		"SHA-1": {func(c *ssh.Certificate) {
			signBy(t, c, testSigner("ca"))
			c.Signature.Format = ssh.KeyAlgoRSA
		}, "signed with"},
	} {
		t.Run(name, func(t *testing.T) { refusedFor(t, pol, certificateOf(t, c.change), c.why) })
	}
}

// Guards against a look-up for mere offers that lets more in than the login: what
// has another reason than the signature is refused there already.
func TestOfferedCertificatesNeedNoSignatureToBeRefused(t *testing.T) {
	d := newDir(t)
	pol := d.certified(t, `cert-authority,principals="anna" `+authorizedLine("ca"), authorizedLine("otto"))
	good := certificateOf(t, nil)
	forged := certificateOf(t, func(c *ssh.Certificate) {
		signBy(t, c, testSigner("other"))
		c.SignatureKey = testKey("ca")
	})
	late := certificateOf(t, func(c *ssh.Certificate) { c.ValidBefore = 1 })
	for name, c := range map[string]struct {
		key            ssh.PublicKey
		offered, login bool
	}{
		"good": {good, true, true}, "forged": {forged, true, false}, "expired": {late, false, false},
		"key": {testKey("otto"), true, true}, "stranger": {testKey("eva"), false, false},
	} {
		_, err := pol.Identify(c.key, anywhere)
		if offered := pol.Offered(c.key, anywhere); (offered == nil) != c.offered || (err == nil) != c.login {
			t.Errorf("%s: offered %v, login %v", name, offered, err)
		}
	}
}

// Guards against huge, small and forgotten kinds of keys behind a certificate.
func TestCertificatesForWeakKeysAreRefused(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	d := newDir(t)
	pol := d.certified(t, `cert-authority,principals="anna" `+authorizedLine("ca"))
	for bits, why := range map[int]string{1024: "RSA keys must have", 2048: ""} {
		private, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ssh.NewPublicKey(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		cert := certificateOf(t, func(c *ssh.Certificate) { c.Key = key })
		if why != "" {
			refusedFor(t, pol, cert, why)
		} else if _, err := pol.Identify(cert, anywhere); err != nil {
			t.Error(err)
		}
	}
}

// Guards against security keys that work untouched because somebody asked for it
// when the certificate was made.
func TestCertificateCannotLetASecurityKeyGoUntouched(t *testing.T) {
	d := newDir(t)
	pol := d.certified(t, `cert-authority,principals="anna" `+authorizedLine("ca"))
	security, err := ssh.ParsePublicKey(ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(testPrivateKey("anna")[32:]), "ssh:"}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pol.Identify(certificateOf(t, func(c *ssh.Certificate) { c.Key = security }), anywhere); err != nil {
		t.Error(err)
	}
	untouched := func(c *ssh.Certificate) { c.Extensions["no-touch-required"] = "" }
	refusedFor(t, pol, certificateOf(t, func(c *ssh.Certificate) { c.Key = security; untouched(c) }), "untouched")
	if _, err := pol.Identify(certificateOf(t, untouched), anywhere); err != nil {
		t.Errorf("a plain key: %v", err)
	}
}

// Guards against certificates that widen what the line of their authority
// narrows, and the other way round.
func TestCertificateAndLineNarrowTogether(t *testing.T) {
	d := newDir(t)
	forced := func(command string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.CriticalOptions["force-command"] = command }
	}
	silent := func(c *ssh.Certificate) { delete(c.Extensions, "permit-port-forwarding") }
	for name, c := range map[string]struct {
		options string
		change  func(*ssh.Certificate)
		command string
		noJump  bool
		why     string // "" is let in
	}{
		"nothing":                 {},
		"command of the line":     {options: `command="/x/nix-store --serve",`, command: "nix-store --serve"},
		"command of both":         {options: `command="/x/nix-store --serve",`, change: forced("nix-store  --serve"), command: "nix-store --serve"},
		"command of certificate":  {change: forced("/x/nix-daemon --stdio"), command: "nix-daemon --stdio"},
		"two commands":            {options: `command="nix-store --serve",`, change: forced("nix-store --serve --write"), why: "it is bound to"},
		"no forwarding":           {change: silent, noJump: true},
		"restricted line":         {options: "restrict,", noJump: true},
		"given back by line only": {options: "restrict,port-forwarding,", change: silent, noJump: true},
		"line from elsewhere":     {options: `from="10.0.0.0/8",`, why: "must not be used from 192.0.2.7"},
		"line from here":          {options: `from="192.0.2.0/24",`},
		"both from here": {options: `from="192.0.2.0/24",`, change: func(c *ssh.Certificate) {
			c.CriticalOptions["source-address"] = "10.0.0.0/8,192.0.2.7/32"
		}},
		"line expired": {options: `expiry-time="20200101Z",`, why: "expired on 2020-01-01 00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			pol := d.certified(t, c.options+`cert-authority,principals="anna" `+authorizedLine("ca"))
			cert := certificateOf(t, c.change)
			if c.why != "" {
				refusedFor(t, pol, cert, c.why)
				return
			}
			access, err := pol.Identify(cert, anywhere)
			if err != nil {
				t.Fatal(err)
			}
			if access.Command != c.command || access.NoJump != c.noJump {
				t.Errorf("got %+v", access)
			}
		})
	}
}

// Guards against a certificate with names of two principals that gets the rights
// of whoever stands first.
func TestCertificateWithNamesOfTwoPrincipalsIsRefused(t *testing.T) {
	d := newDir(t)
	ca := authorizedLine("ca")
	pol := d.load(t, minimal+`principals:
  - {name: anna, role: full, keys: ['cert-authority,principals="anna" `+ca+`', 'from="192.0.2.0/24",cert-authority,principals="root" `+ca+`']}
  - {name: board, role: read, keys: ['restrict,cert-authority,principals="board,screen" `+ca+`']}
`)
	for _, c := range []struct {
		names     []string
		principal string
		noJump    bool
	}{
		{[]string{"anna"}, "anna", false}, {[]string{"root", "x"}, "anna", false}, {[]string{"x", "screen"}, "board", true},
		{[]string{"root", "anna"}, "anna", false}, {[]string{"anna", "screen"}, "", false}, {[]string{"board", "root"}, "", false},
	} {
		cert := certificateOf(t, func(cert *ssh.Certificate) { cert.ValidPrincipals = c.names })
		access, err := pol.Identify(cert, anywhere)
		switch {
		case c.principal == "" && (err == nil || !strings.Contains(err.Error(), "names of principal anna and of principal board")):
			t.Errorf("%q: got %+v, %v", c.names, access, err)
		case c.principal != "" && (err != nil || access.Principal.Name != c.principal || access.NoJump != c.noJump):
			t.Errorf("%q: got %+v, %v", c.names, access, err)
		}
	}
}

// Guards against certificates and keys that go on to count when their time is
// over, and start before it.
func TestKeysAndCertificatesEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDir(t)
		end := time.Now().Add(time.Hour).UTC()
		pol := d.certified(t, `cert-authority,principals="anna" `+authorizedLine("ca"), `expiry-time="`+end.Format("20060102150405Z")+`" `+authorizedLine("otto"))
		cert := certificateOf(t, func(c *ssh.Certificate) {
			c.ValidAfter, c.ValidBefore = uint64(end.Add(-time.Minute).Unix()), uint64(end.Unix())
		})
		lets := func(key, cert2 bool) {
			t.Helper()
			_, keyErr := pol.Identify(testKey("otto"), anywhere)
			_, certErr := pol.Identify(cert, anywhere)
			if (keyErr == nil) != key || (certErr == nil) != cert2 {
				t.Errorf("at %s: key %v, certificate %v", time.Now().UTC(), keyErr, certErr)
			}
		}
		lets(true, false)
		time.Sleep(time.Hour - time.Minute - time.Second)
		lets(true, false)
		time.Sleep(time.Second)
		lets(true, true)
		time.Sleep(time.Minute - time.Nanosecond)
		lets(true, true)
		time.Sleep(time.Nanosecond)
		lets(false, false)
	})
}

// Guards against certificates for ever that do not count at all.
func TestCertificateForEverCounts(t *testing.T) {
	pol := newDir(t).certified(t, `cert-authority,principals="anna" `+authorizedLine("ca"))
	for _, until := range []uint64{ssh.CertTimeInfinity, 1 << 62} {
		cert := certificateOf(t, func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 0, until })
		if _, err := pol.Identify(cert, anywhere); err != nil {
			t.Errorf("until %d: %v", until, err)
		}
	}
}
