package proxy

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// sign has ssh-keygen sign the public half of testKey(key) with testKey(authority)
// and returns the private key's file, beside which ssh finds the certificate.
func (c *openSSH) sign(key, authority string, args ...string) (file string) {
	c.Helper()
	file, ca := c.keyFile(key), c.keyFile(authority)
	writeText(c, file+".pub", publicLine(testKey(key))+"\n")
	out, err := exec.CommandContext(c.Context(), "ssh-keygen", append(append([]string{"-q", "-s", ca}, args...), file+".pub")...).CombinedOutput()
	if err != nil {
		c.Fatalf("ssh-keygen %q: %v: %s", args, err, out)
	}
	return file
}

// withKeysOf makes a front with the keys of a policy, and a client of OpenSSH.
func withKeysOf(t *testing.T, p *Proxy) *openSSH { return withOpenSSH(t, p.with) }

// Guards against what OpenSSH makes and we read in another way: certificates that
// must come in, and those that must not.
func TestOpenSSHCertificates(t *testing.T) {
	const id = "-I alice@laptop -z 7"
	for name, c := range map[string]struct {
		line string // of the authority; "" for the usual one
		args string
		ca   string
		want string // behind the fingerprint; "" for a refusal
		why  string
	}{
		"good":                 {args: "-n bob,alice", want: "[] jump true"},
		"in its time":          {args: "-n alice -V -1h:+1h", want: "[] jump true"},
		"nothing allowed":      {args: "-n alice -O clear", want: "[] jump false"},
		"bound":                {args: "-n alice -O force-command=/x/nix-store\x00--serve", want: "[nix-store --serve] jump true"},
		"from here":            {args: "-n alice -O source-address=127.0.0.0/8,::1/128", want: "[] jump true"},
		"unknown extension":    {args: "-n alice -O extension:x@example.org=y", want: "[] jump true"},
		"bound by its line":    {line: `restrict,command="nix-daemon --stdio",` + authorityLine, args: "-n alice", want: "[nix-daemon --stdio] jump false"},
		"expired":              {args: "-n alice -V 20200101:20200102", why: "expired on 2020-01-0"},
		"not yet":              {args: "-n alice -V 20990101:20990102", why: "counts from 20"},
		"wrong principal":      {args: "-n bob", why: "none of its principals"},
		"no principals":        {why: "no principals"},
		"wrong authority":      {args: "-n alice", ca: "other", why: "is not in the policy"},
		"from elsewhere":       {args: "-n alice -O source-address=192.0.2.0/24", why: "must not be used from 127.0.0.1"},
		"bound to a shell":     {args: "-n alice -O force-command=/bin/sh", why: "force-command"},
		"unknown critical":     {args: "-n alice -O critical:x@example.org=y", why: "critical option"},
		"PIN required":         {args: "-n alice -O verify-required", why: "critical option"},
		"revoked serial":       {args: "-n alice -z 9", why: "serial 9 is revoked"},
		"line from elsewhere":  {line: `from="192.0.2.0/24",` + authorityLine, args: "-n alice", why: "must not be used from 127.0.0.1"},
		"line expired":         {line: `expiry-time="202001010000Z",` + authorityLine, args: "-n alice", why: "expired on 2020-01-01 00:00:00Z"},
		"line for other names": {line: `cert-authority,principals="eva" `, args: "-n alice", why: "none of its principals"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.line == "" {
				c.line = authorityLine
			}
			if c.ca == "" {
				c.ca = "ca"
			}
			revoked := writeText(t, filepath.Join(t.TempDir(), "revoked"), "serial: 8-10\n")
			p, _ := policyOf(t, "revoked_keys: "+revoked+"\n", c.line+publicLine(testKey("ca")))
			s := withKeysOf(t, p)
			args := strings.Fields(id + " " + c.args)
			for i, arg := range args {
				args[i] = strings.ReplaceAll(arg, "\x00", " ")
			}
			file := s.sign("certified", c.ca, args...)
			stdout, stderr, status := s.ssh(nil, "-i", file, "front", "access")
			if c.want == "" {
				s.settle(func() bool { return len(s.book.records(s, "ssh login refused")) > 0 })
				if stdout != "" || status != 255 || !strings.Contains(s.book.String(), c.why) {
					t.Errorf("got %q, status %d, want a refusal with %q; the log:\n%s%s", stdout, status, c.why, s.book, stderr)
				}
				return
			}
			want := fmt.Sprintf("alice %s [id \"alice@laptop\" serial 7 authority %s] %s", fingerprint(testKey("certified")), fingerprint(testKey("ca")), c.want)
			if stdout != want || status != 0 {
				t.Errorf("got %q, status %d, want %q; the log:\n%s%s", stdout, status, want, s.book, stderr)
			}
		})
	}
}

// Guards against RSA, of whose certificates the names of the algorithms differ
// from those of the keys.
func TestOpenSSHCertificatesOfEveryType(t *testing.T) {
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			key, ca := filepath.Join(dir, "key"), filepath.Join(dir, "ca")
			for _, args := range [][]string{
				{"-q", "-t", kind, "-N", "", "-f", key}, {"-q", "-t", kind, "-N", "", "-f", ca}, {"-q", "-s", ca, "-I", "x", "-n", "alice", key + ".pub"},
			} {
				if out, err := exec.Command("ssh-keygen", args...).CombinedOutput(); err != nil {
					t.Fatalf("ssh-keygen %q: %v: %s", args, err, out)
				}
			}
			p, _ := policyOf(t, "", authorityLine+string(readFile(t, ca+".pub")))
			s := withKeysOf(t, p)
			stdout, stderr, status := s.ssh(nil, "-i", key, "front", "access")
			if !strings.HasPrefix(stdout, "alice SHA256:") || status != 0 {
				t.Errorf("got %q, status %d; the log:\n%s%s", stdout, status, s.book, stderr)
			}
		})
	}
}

// Guards against a date that is read and not kept.
func TestOpenSSHWithAnExpiredKeyIsRefused(t *testing.T) {
	p, _ := policyOf(t, "", `expiry-time="20200101" `+publicLine(testKey("alice")), `expiry-time="20990101" `+publicLine(testKey("bob")))
	c := withKeysOf(t, p)
	if stdout, _, status := c.ssh(nil, "-i", c.key(), "front", "access"); stdout != "" || status != 255 {
		t.Errorf("got %q, status %d", stdout, status)
	}
	if stdout, stderr, status := c.ssh(nil, "-i", c.keyFile("bob"), "front", "access"); status != 0 {
		t.Errorf("got %q, status %d: %s", stdout, status, stderr)
	}
}

// hostCertificate has ssh-keygen sign the front's host key and returns the file.
func (c *openSSH) hostCertificate(args ...string) string {
	c.Helper()
	return c.sign("host", "host authority", append([]string{"-h", "-I", "front"}, args...)...) + "-cert.pub"
}

// Guards against a host certificate that clients do not take, and against clients
// that know the plain key and meet another.
func TestOpenSSHKnowsTheHostByItsCertificate(t *testing.T) {
	p, dir := policyOf(t, "", publicLine(testKey("alice")))
	c := withKeysOf(t, p)
	text := string(readFile(t, filepath.Join(dir, "policy.yaml")))
	shows := func(args string) {
		t.Helper()
		file := c.hostCertificate(strings.Fields(args)...)
		writeText(t, filepath.Join(dir, "policy.yaml"), text+"ssh: {host_certificate: "+file+"}\n")
		if err := p.policy.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	knows := func(name, line string) []string {
		return []string{"-o", "UserKnownHostsFile=" + c.file(name, line+"\n"), "-o", "HostKeyAlias=proxy.example.org", "-i", c.key(), "front", "access"}
	}
	authority := knows("by-authority", "@cert-authority *.example.org "+publicLine(testKey("host authority")))
	another := knows("by-another", "@cert-authority *.example.org "+publicLine(testKey("ca")))
	revoked := knows("revoked", "@cert-authority *.example.org "+publicLine(testKey("host authority"))+"\n@revoked * "+publicLine(testKey("host authority")))
	both := knows("by-both", "@cert-authority *.example.org "+publicLine(testKey("host authority"))+"\nproxy.example.org "+publicLine(testKey("host")))
	plain := knows("by-key", "proxy.example.org "+publicLine(testKey("host")))
	for _, step := range []struct {
		certificate string // a new one; "" is what there was
		args        []string
		in          bool
	}{
		{"", authority, false},
		{"", plain, true},
		{"-n proxy.example.org -V +1h", authority, true},
		{"", plain, true},
		{"", another, false},
		{"", revoked, false},
		{"-n other.example.org -V +1h", authority, false},
		{"", plain, true},
		{"-n proxy.example.org -V 20200101:20200102", authority, false},
		{"", plain, true},
		{"", both, true},
		{"-n proxy.example.org -V -1h:+1h", authority, true},
	} {
		if step.certificate != "" {
			shows(step.certificate)
		}
		stdout, stderr, status := c.ssh(nil, append([]string{"-v"}, step.args...)...)
		if in := status == 0 && strings.HasPrefix(stdout, "alice "); in != step.in {
			t.Errorf("%q: status %d, want in %v:\n%s", step.args[1], status, step.in, stderr)
		}
		if !step.in && !strings.Contains(stderr, "Host key verification failed") {
			t.Errorf("%q: refused for another reason:\n%s", step.args[1], stderr)
		}
	}
}

// Guards against clients that can do no certificates, or that ask for one where
// there is none.
func TestHostCertificateLeavesThePlainKeyOnOffer(t *testing.T) {
	p, dir := policyOf(t, "", publicLine(testKey("alice")))
	c := withKeysOf(t, p)
	host, port, err := net.SplitHostPort(c.addr)
	if err != nil {
		t.Fatal(err)
	}
	writeText(t, filepath.Join(dir, "policy.yaml"), string(readFile(t, filepath.Join(dir, "policy.yaml")))+"ssh: {host_certificate: "+c.hostCertificate("-n", host)+"}\n")
	if err := p.policy.Reload(); err != nil {
		t.Fatal(err)
	}
	for algorithm, kind := range map[string]string{ssh.KeyAlgoED25519: ssh.KeyAlgoED25519, ssh.CertAlgoED25519v01: ssh.CertAlgoED25519v01} {
		config := c.config("nix", ssh.PublicKeys(testKey("alice")))
		config.HostKeyAlgorithms = []string{algorithm}
		var shown string
		config.HostKeyCallback = func(_ string, _ net.Addr, key ssh.PublicKey) error { shown = key.Type(); return nil }
		client, err := c.dialConfig(config)
		if err != nil {
			t.Fatalf("%s at port %s: %v", algorithm, port, err)
		}
		client.Close()
		if shown != kind {
			t.Errorf("asked for %s, got %s", algorithm, shown)
		}
	}
}
