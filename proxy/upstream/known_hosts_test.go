package upstream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// knownLine is a line of a known_hosts file.
func knownLine(host string, key ssh.PublicKey) string {
	return host + " " + string(ssh.MarshalAuthorizedKey(key))
}

// onFile makes a known_hosts file the only thing that tells of host keys.
func onFile(f *fakeBuilder, tgt *target, text string) {
	tgt.hostKeys, tgt.knownHosts = nil, filepath.Join(f.t.TempDir(), "known_hosts")
	if err := os.WriteFile(tgt.knownHosts, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// meets tries to get a session; words are those of the refusal, none if there is
// to be none.
func (w *world) meets(words ...string) {
	w.Helper()
	if len(words) == 0 {
		w.works(w.get())
		return
	}
	w.refused(HostKey, words...)
	if n := len(w.fake.commands); n != 0 {
		w.Errorf("ran %d commands there", n)
	}
}

// Guards against lines of known_hosts that OpenSSH honours and we do not, or the
// other way round: hashed names, patterns, negation, ports, revoked keys.
func TestKnownHostsLines(t *testing.T) {
	host, other := testKey("host").PublicKey(), testKey("other").PublicKey()
	const name, far = "b1.example.org:22", "b1.example.org:2222"
	for test, line := range map[string]struct {
		address, text string
		words         []string // of the refusal
	}{
		"the key":                 {name, knownLine("b1.example.org", host), nil},
		"another key":             {name, knownLine("b1.example.org", other), []string{"not on file"}},
		"another host":            {name, knownLine("b2.example.org", host), []string{"no host key is on file"}},
		"another port":            {name, knownLine("[b1.example.org]:2222", host), []string{"no host key is on file"}},
		"both of two hosts":       {name, knownLine("b2.example.org", other) + knownLine("b1.example.org", host), nil},
		"a broken file":           {name, "b1.example.org ssh-ed25519 AAAA\n", []string{"read known hosts"}},
		"no line":                 {name, "", []string{"no host key is on file"}},
		"hashed":                  {name, knownLine(knownhosts.HashHostname("b1.example.org"), host), nil},
		"hashed, other host":      {name, knownLine(knownhosts.HashHostname("b2.example.org"), host), []string{"no host key is on file"}},
		"hashed with port":        {far, knownLine(knownhosts.HashHostname("[b1.example.org]:2222"), host), nil},
		"hashed without port":     {far, knownLine(knownhosts.HashHostname("b1.example.org"), host), []string{"no host key is on file"}},
		"port":                    {far, knownLine("[b1.example.org]:2222", host), nil},
		"without port":            {far, knownLine("b1.example.org", host), []string{"no host key is on file"}},
		"without port, patterns":  {far, knownLine("b1.example.org", host) + knownLine("*.example.org", other), []string{"not on file"}},
		"pattern":                 {name, knownLine("*.example.org", host), nil},
		"pattern for any port":    {far, knownLine("*.example.org", host), nil},
		"one character":           {name, knownLine("b?.example.org", host), nil},
		"negation":                {name, knownLine("*.example.org,!b1.example.org", host), []string{"no host key is on file"}},
		"negation of another":     {name, knownLine("*.example.org,!b2.example.org", host), nil},
		"revoked":                 {name, knownLine("b1.example.org", host) + "@revoked " + knownLine("*", host), []string{"which is revoked"}},
		"revoked, other key":      {name, knownLine("b1.example.org", host) + "@revoked " + knownLine("*", other), nil},
		"revoked on another port": {far, knownLine("*.example.org", host) + "@revoked " + knownLine("*", host), []string{"which is revoked"}},
		"two keys of one type":    {name, knownLine("b1.example.org", other) + knownLine("b1.example.org", host), nil},
		"comment and empty lines": {name, "# ours\n\n" + knownLine("b1.example.org", host), nil},
		"unknown marker":          {name, "@trusted " + knownLine("b1.example.org", host), []string{"unexpected marker"}},
	} {
		t.Run(test, func(t *testing.T) {
			inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
				tgt.address = line.address
				onFile(f, tgt, line.text)
			}, func(w *world) { w.meets(line.words...) })
		})
	}
}

// certified gives a host key a certificate, valid for an hour from now on.
func certified(t testing.TB, key, authority ssh.Signer, change func(*ssh.Certificate)) ssh.Signer {
	t.Helper()
	cert := &ssh.Certificate{
		Key: key.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"b1.example.org"},
		ValidAfter: uint64(time.Now().Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
	}
	if change != nil {
		change(cert)
	}
	if err := cert.SignCert(rand.Reader, authority); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// Guards against host certificates that say too much: of another authority, for
// another host, for no host and so for all, expired, for users, with options that
// nobody enforces, or revoked with their authority or with their key.
func TestHostCertificates(t *testing.T) {
	key, authority := testKey("host"), testKey("authority")
	line := "@cert-authority " + knownLine("*.example.org", authority.PublicKey())
	for test, c := range map[string]struct {
		text   string
		change func(*ssh.Certificate)
		words  []string // of the refusal
	}{
		"in order":     {line, nil, nil},
		"hashed line":  {"@cert-authority " + knownLine(knownhosts.HashHostname("b1.example.org"), authority.PublicKey()), nil, nil},
		"pattern":      {line, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"x", "*.EXAMPLE.org"} }, nil},
		"no authority": {knownLine("b1.example.org", testKey("other").PublicKey()), nil, []string{"no common algorithm for host key"}},
		"other authority": {"@cert-authority " + knownLine("*", testKey("other").PublicKey()), nil,
			[]string{"authority " + ssh.FingerprintSHA256(authority.PublicKey()), "not on file"}},
		"authority of others": {"@cert-authority " + knownLine("*.example.com", authority.PublicKey()), nil, []string{"no host key is on file"}},
		"authority without marker": {knownLine("*.example.org", authority.PublicKey()) + "@cert-authority " + knownLine("*", testKey("other").PublicKey()), nil,
			[]string{"not on file"}},
		"other host": {line, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"b2.example.org", "b1?.example.org"} },
			[]string{"b2.example.org", `not for "b1.example.org"`}},
		"no host":   {line, func(c *ssh.Certificate) { c.ValidPrincipals = nil }, []string{"names no host"}},
		"expired":   {line, func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 1, uint64(time.Now().Unix()) }, []string{"expired"}},
		"not yet":   {line, func(c *ssh.Certificate) { c.ValidAfter++ }, []string{"not yet valid"}},
		"for users": {line, func(c *ssh.Certificate) { c.CertType = ssh.UserCert }, []string{"not one for hosts"}},
		"option": {line, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} },
			[]string{"unsupported critical option"}},
		"revoked key": {line + "@revoked " + knownLine("*", key.PublicKey()), nil,
			[]string{ssh.FingerprintSHA256(key.PublicKey()), "is revoked"}},
		"revoked authority": {line + "@revoked " + knownLine("*", authority.PublicKey()), nil,
			[]string{ssh.FingerprintSHA256(authority.PublicKey()), "is revoked"}},
		"revoked authority, key on file": {line + knownLine("b1.example.org", key.PublicKey()) + "@revoked " + knownLine("*", authority.PublicKey()), nil,
			[]string{"is revoked"}},
		"key on file": {line + knownLine("b1.example.org", key.PublicKey()),
			func(c *ssh.Certificate) { c.ValidPrincipals = nil }, nil},
	} {
		t.Run(test, func(t *testing.T) {
			inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
				f.hostKey = certified(t, key, authority, c.change)
				onFile(f, tgt, c.text)
			}, func(w *world) { w.meets(c.words...) })
		})
	}
}

// Guards against a certificate that only claims to be of an authority on file.
func TestForgedHostCertificateIsRefused(t *testing.T) {
	authority := testKey("authority").PublicKey()
	inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
		f.hostKey = certified(t, testKey("host"), testKey("forger"), nil)
		f.hostKey.PublicKey().(*ssh.Certificate).SignatureKey = authority
		onFile(f, tgt, "@cert-authority "+knownLine("*", authority))
	}, func(w *world) { w.meets("signature does not verify") })
}

// Guards against a host that has a plain key only being refused because there is
// an authority on file, too, and against the authority's key as a host's own.
func TestPlainKeyBesideAnAuthority(t *testing.T) {
	authority := "@cert-authority " + knownLine("*.example.org", testKey("authority").PublicKey())
	inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
		onFile(f, tgt, authority+knownLine("b1.example.org", f.hostKey.PublicKey()))
	}, func(w *world) { w.meets() })
	inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
		f.hostKey = testKey("authority")
		onFile(f, tgt, authority+knownLine("b1.example.org", testKey("host").PublicKey()))
	}, func(w *world) { w.meets("not on file") })
}

// Guards against offering certificates of the authority's own type alone: it
// signs host keys of any, and a host may have no other.
func TestAuthorityOfOneTypeSignsKeysOfAnother(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	host, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
		f.hostKey = certified(t, host, testKey("authority"), nil)
		onFile(f, tgt, "@cert-authority "+knownLine("*", testKey("authority").PublicKey()))
	}, func(w *world) { w.meets() })
}

// Guards against an authority's signature that rests on SHA-1.
func TestCertificateSignedWithSHA1IsRefused(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for algorithm, words := range map[string][]string{
		ssh.KeyAlgoRSA:       {`"ssh-rsa"`, "not safe"},
		ssh.KeyAlgoRSASHA256: nil,
	} {
		authority, err := ssh.NewSignerWithAlgorithms(signer.(ssh.AlgorithmSigner), []string{algorithm})
		if err != nil {
			t.Fatal(err)
		}
		inWorld(t, func(f *fakeBuilder, tgt *target, _ *Options) {
			f.hostKey = certified(t, testKey("host"), authority, nil)
			onFile(f, tgt, "@cert-authority "+knownLine("*", signer.PublicKey()))
		}, func(w *world) { w.meets(words...) })
	}
}
