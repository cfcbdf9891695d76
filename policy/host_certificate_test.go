package policy

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// hostCertificateOf makes a good certificate for the key "proxy".
func hostCertificateOf(t testing.TB, change func(*ssh.Certificate)) string {
	t.Helper()
	cert := certificateOf(t, func(c *ssh.Certificate) {
		c.Key, c.CertType, c.ValidPrincipals, c.Permissions = testKey("proxy"), ssh.HostCert, []string{"proxy.example.org", "proxy"}, ssh.Permissions{}
		if change != nil {
			change(c)
		}
	})
	return keyLine(cert) + " proxy\n"
}

// withHostCertificate is a policy whose proxy has made its key already.
func (d dir) withHostCertificate(certificate string) string {
	d.write("state/"+hostKeyFile, authorizedLine("proxy")+" nixbastion host key\n", 0o644)
	d.write("host-cert.pub", certificate, 0o644)
	return d.write("policy.yaml", "state_dir: state\nssh: {host_certificate: host-cert.pub}\n", 0o644)
}

// Guards against certificates that clients would refuse.
func TestHostCertificatesThatAreRefused(t *testing.T) {
	d := newDir(t)
	for name, c := range map[string]struct{ text, want string }{
		"a key":     {authorizedLine("proxy") + "\n", "is a public key, not a certificate"},
		"nonsense":  {"nonsense\n", "is not a certificate"},
		"two lines": {strings.Repeat(hostCertificateOf(t, nil), 2), "is not a certificate"},
		"options":   {"restrict " + hostCertificateOf(t, nil), "is not a certificate"},
		"nothing":   {"", "is not a certificate"},
		"for users": {hostCertificateOf(t, func(c *ssh.Certificate) { c.CertType = ssh.UserCert }), "for users, not for hosts"},
		"other key": {hostCertificateOf(t, func(c *ssh.Certificate) { c.Key = testKey("anna") }), "is for the key " + ssh.FingerprintSHA256(testKey("anna"))},
		"critical":  {hostCertificateOf(t, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"x": ""} }), "critical options"},
		"no time":   {hostCertificateOf(t, func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter }), "no time at which it counts"},
		"forged": {hostCertificateOf(t, func(c *ssh.Certificate) {
			signBy(t, c, testSigner("other"))
			c.SignatureKey = testKey("ca")
		}), "has not signed it"},
	} {
		t.Run(name, func(t *testing.T) {
			pol, err := Load(d.withHostCertificate(c.text))
			if err == nil || pol != nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "policy.yaml:2:25: ") {
				t.Errorf("got %v", err)
			}
		})
	}
	d.withHostCertificate("")
	for file, want := range map[string]string{
		"missing": "no such file", d.write("open.pub", hostCertificateOf(t, nil), 0o646): "everybody may write",
	} {
		if _, err := Load(d.write("policy.yaml", "state_dir: state\nssh: {host_certificate: "+file+"}\n", 0o644)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Guards against a date that keeps a policy from being loaded, with whatever else
// has changed in it, and against a certificate that is shown when its time is over.
func TestHostCertificateOutOfItsTimeHasAFaultAndIsNoMistake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDir(t)
		file := d.withHostCertificate(hostCertificateOf(t, nil))
		fault := func(want string) {
			t.Helper()
			pol, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			err = pol.SSH.HostCertificate.Fault(testKey("proxy"), time.Now())
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		fault("")
		time.Sleep(time.Hour - time.Second)
		fault("")
		time.Sleep(time.Second)
		fault("expired on")
		file = d.withHostCertificate(hostCertificateOf(t, func(c *ssh.Certificate) { c.ValidAfter = c.ValidBefore - 1 }))
		fault("counts from")
	})
	d := newDir(t)
	pol, err := Load(d.withHostCertificate(hostCertificateOf(t, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := pol.SSH.HostCertificate.Fault(testKey("anna"), time.Now()); err == nil {
		t.Error("fits another key")
	}
}

// Guards against a proxy that has no key yet and cannot be given a certificate,
// as its state directory is one that only it may read.
func TestHostCertificateOfAKeyThatIsNotThereYetIsLoaded(t *testing.T) {
	d := newDir(t)
	d.write("host-cert.pub", hostCertificateOf(t, nil), 0o644)
	if pol := d.load(t, "state_dir: state\nssh: {host_certificate: host-cert.pub}\n"); pol.SSH.HostCertificate == nil {
		t.Error("none")
	}
}

// Guards against lines to paste by which clients would refuse the host.
func TestDescribePrintsTheAuthorityForHostsOfTheCertificate(t *testing.T) {
	d := newDir(t)
	authority := func(host string) string { return "\n  @cert-authority " + host + " " + authorizedLine("ca") + "\n" }
	principals := "principals: [{name: anna, role: full, keys: [" + authorizedLine("anna") + "]}]\n"
	for _, c := range []struct {
		change   func(*ssh.Certificate)
		has, not []string
	}{
		{nil, []string{
			authority("proxy.example.org"), "\n  proxy.example.org " + authorizedLine("proxy") + "\n", "\n  " + ssh.FingerprintSHA256(testKey("proxy")) + "\n",
			"Its host key has a certificate of authority " + ssh.FingerprintSHA256(testKey("ca")) + " for proxy.example.org, proxy, until ",
			"\nwarning: host certificate ", " expires on ",
		}, []string{"does not start"}},
		{func(c *ssh.Certificate) { c.ValidPrincipals = []string{"other", "*.EXAMPLE.org"} }, []string{authority("proxy.example.org")}, nil},
		{func(c *ssh.Certificate) { c.ValidPrincipals = []string{"other", "proxy.example"} }, []string{"The certificate of the proxy's host key is not for proxy.example.org."},
			[]string{"@cert-authority"}},
		{func(c *ssh.Certificate) { c.ValidPrincipals, c.ValidBefore = nil, ssh.CertTimeInfinity }, []string{authority("proxy.example.org"), "has no principals"},
			[]string{"expires on"}},
		{func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter + 1 }, []string{"expired on", "the proxy does not start with it"}, nil},
	} {
		file := d.withHostCertificate(hostCertificateOf(t, c.change))
		pol, err := Load(d.write("policy.yaml", principals+"state_dir: state\nssh: {host_certificate: host-cert.pub}\n", 0o644))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		got := describe(t, pol, "proxy.example.org")
		for _, want := range c.has {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in\n%s", want, got)
			}
		}
		for _, not := range c.not {
			if strings.Contains(got, not) {
				t.Errorf("%q in\n%s", not, got)
			}
		}
	}
}
