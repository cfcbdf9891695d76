package proxy

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// openSSH is the real client of this machine, with a home of its own.
type openSSH struct {
	*site
	home string
}

// withOpenSSH makes a Front on loopback and a client that alice's key opens.
func withOpenSSH(t *testing.T, change func(*FrontOptions)) *openSSH {
	t.Helper()
	c := &openSSH{site: onLoopback(t, change), home: t.TempDir()}
	host, port, err := net.SplitHostPort(c.addr)
	if err != nil {
		t.Fatal(err)
	}
	c.keyFile("alice")
	c.file("known_hosts", fmt.Sprintf("[%s]:%s %s", host, port, ssh.MarshalAuthorizedKey(c.hostKey)))
	c.file("config", fmt.Sprintf(`
Host front
  HostName %s
  Port %s
  User nix
  BatchMode yes
  StrictHostKeyChecking yes
  UserKnownHostsFile %[3]s/known_hosts
  GlobalKnownHostsFile none
  IdentitiesOnly yes
  ConnectTimeout 30
`, host, port, c.home))
	return c
}

func (c *openSSH) file(name, content string) string {
	c.Helper()
	path := filepath.Join(c.home, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		c.Fatal(err)
	}
	return path
}

// keyFile writes the key of testKey(name).
func (c *openSSH) keyFile(name string) string {
	c.Helper()
	seed := sha256.Sum256([]byte(name))
	block, err := ssh.MarshalPrivateKey(ed25519.NewKeyFromSeed(seed[:]), name)
	if err != nil {
		c.Fatal(err)
	}
	return c.file("key-"+strings.ReplaceAll(name, " ", "-"), string(pem.EncodeToMemory(block)))
}

func (c *openSSH) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.Context(), "ssh", append([]string{"-F", filepath.Join(c.home, "config")}, args...)...)
	cmd.Env = []string{"HOME=" + c.home, "PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// ssh runs the client to its end.
func (c *openSSH) ssh(stdin io.Reader, args ...string) (stdout, stderr string, status int) {
	c.Helper()
	cmd := c.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.Fatalf("ssh %q: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// key names alice's.
func (c *openSSH) key() string { return filepath.Join(c.home, "key-alice") }

// Guards against ciphers at half the rate, which OpenSSH takes if it can.
func TestOpenSSHNegotiatesGCM(t *testing.T) {
	c := withOpenSSH(t, nil)
	stdout, stderr, status := c.ssh(nil, "-v", "-i", c.key(), "front", "whoami")
	if want := "alice " + fingerprint(testKey("alice")) + " data of alice"; stdout != want || status != 0 {
		t.Fatalf("got %q and status %d, want %q; stderr:\n%s", stdout, status, want, stderr)
	}
	cipher := "aes128-gcm@openssh.com"
	if !hasFastAES() {
		cipher = "chacha20-poly1305@openssh.com"
	}
	for _, words := range []string{
		"kex: server->client cipher: " + cipher, "kex: client->server cipher: " + cipher, "kex: host key algorithm: ssh-ed25519",
		"Authentications that can continue: publickey\n",
	} {
		if !strings.Contains(strings.ReplaceAll(stderr, "\r\n", "\n"), words) {
			t.Errorf("ssh -v does not say %q:\n%s", words, stderr)
		}
	}
	if !strings.Contains(stderr, "kex: algorithm: mlkem768x25519-sha256") && !strings.Contains(stderr, "kex: algorithm: curve25519-sha256") {
		t.Errorf("another key exchange than wanted:\n%s", stderr)
	}
}

// Guards against a proxy that runs commands, and against users who do not learn
// what to do instead.
func TestOpenSSHSeesWhyACommandIsRefused(t *testing.T) {
	l := newLab(t)
	c := withOpenSSH(t, func(o *FrontOptions) { o.Exec = l.proxy.exec })
	c.roster.set(Grant{Principal: "alice", Data: &policy.Access{Principal: l.principal("alice")}}, testKey("alice"))
	for command, want := range map[string]error{
		"id":                                 errUnknownCommand,
		"nix-daemon --stdio; id":             errUnknownCommand,
		"nix-store -r /nix/store/x.drv":      errNixosRebuild,
		"nix-daemon --stdio --store local":   errRemoteStore,
		"'nix-daemon --stdio' && echo pwned": errUnknownCommand,
	} {
		stdout, stderr, status := c.ssh(nil, "-i", c.key(), "front", command)
		if stdout != "" || stderr != fmt.Sprintf("nixbastion: %v\n", want) || status != 127 {
			t.Errorf("%q: got %q, %q, status %d; want the sentence %q and 127", command, stdout, stderr, status, want)
		}
	}
}

// Guards against answers that only the tests can read.
func TestOpenSSHReadsAnswers(t *testing.T) {
	l := newLab(t)
	c := withOpenSSH(t, func(o *FrontOptions) { o.Exec = l.proxy.exec })
	c.roster.set(Grant{Principal: "alice", Data: &policy.Access{Principal: l.principal("alice")}}, testKey("alice"))
	for _, command := range []string{"type nix-store", "status", "why x86_64-linux", "check proxy.example.org", "help"} {
		stdout, stderr, status := c.ssh(nil, "-i", c.key(), "front", command)
		if stdout == "" || stderr != "" || status != 0 || !strings.HasSuffix(stdout, "\n") || strings.Contains(stdout, "\r") {
			t.Errorf("%s: %q, %q, status %d", command, stdout, stderr, status)
		}
		raw, _, status := c.ssh(nil, "-i", c.key(), "-tt", "front", command)
		if plainText(raw) != strings.ReplaceAll(stdout, "\n", "\r\n") || status != 0 {
			t.Errorf("%s with a terminal: %q, status %d", command, raw, status)
		}
	}
	if _, stderr, status := c.ssh(nil, "-i", c.key(), "front", "why"); status != statusUsage || stderr != "nixbastion: "+whyUsage+"\n" {
		t.Errorf("why: %q, status %d", stderr, status)
	}
}

// Guards against a shell, and against silence where one was wanted.
func TestOpenSSHGetsNoShell(t *testing.T) {
	c := withOpenSSH(t, nil)
	for _, args := range [][]string{{"front"}, {"-t", "front"}, {"-tt", "front"}} {
		_, stderr, status := c.ssh(strings.NewReader("id\n"), append([]string{"-i", c.key()}, args...)...)
		if status != statusNoShell || !strings.Contains(stderr, noShell) || strings.Contains(stderr, "PTY") {
			t.Errorf("ssh %q: status %d and %q", args, status, stderr)
		}
	}
	if stdout, _, status := c.ssh(nil, "-i", c.key(), "-tt", "front", "say no terminal"); stdout != "no terminal" || status != 0 {
		t.Errorf("a command with -tt printed %q, status %d", stdout, status)
	}
	if _, stderr, status := c.ssh(nil, "-i", c.key(), "-s", "front", "sftp"); status == 0 || !strings.Contains(stderr, "subsystem request failed") {
		t.Errorf("subsystem: status %d and %q", status, stderr)
	}
	if _, stderr, status := c.ssh(nil, "-i", c.key(), "-W", "127.0.0.1:22", "front"); status == 0 || !strings.Contains(stderr, "administratively prohibited") {
		t.Errorf("forwarding: status %d and %q", status, stderr)
	}
}

// Guards against input or output that is lost at its end.
func TestOpenSSHMovesBytesBothWays(t *testing.T) {
	c := withOpenSSH(t, nil)
	data := bytes.Repeat(sha256sum(3), 2<<20/32)
	stdout, stderr, status := c.ssh(bytes.NewReader(data), "-i", c.key(), "front", "cat")
	if stdout != string(data) || status != 0 {
		t.Errorf("%d bytes came back of %d, status %d: %s", len(stdout), len(data), status, stderr)
	}
	if _, _, status := c.ssh(nil, "-i", c.key(), "front", "exit 42"); status != 42 {
		t.Errorf("status %d, want 42", status)
	}
}

// Guards against agents and homes with many keys.
func TestOpenSSHWithTwelveKeysGetsToItsLast(t *testing.T) {
	c := withOpenSSH(t, nil)
	var args []string
	for i := range 11 {
		args = append(args, "-i", c.keyFile(fmt.Sprint("spare ", i)))
	}
	stdout, stderr, status := c.ssh(nil, append(args, "-i", c.key(), "front", "say last")...)
	if stdout != "last" || status != 0 {
		t.Errorf("got %q, status %d: %s", stdout, status, stderr)
	}
}

// Guards against any other way in.
func TestOpenSSHWithoutAKnownKeyIsRefused(t *testing.T) {
	c := withOpenSSH(t, nil)
	for _, args := range [][]string{
		{"-i", c.keyFile("stranger")},
		{"-o", "PubkeyAuthentication=no"},
		{"-o", "BatchMode=no", "-o", "NumberOfPasswordPrompts=1", "-o", "PreferredAuthentications=password,keyboard-interactive,hostbased"},
		{"-o", "PreferredAuthentications=none"},
	} {
		stdout, stderr, status := c.ssh(nil, append(args, "front", "say in")...)
		if stdout != "" || status != 255 || !strings.Contains(stderr, "Permission denied (publickey)") {
			t.Errorf("ssh %q: got %q, status %d: %s", args, stdout, status, stderr)
		}
	}
	c.settle(func() bool { return len(c.book.records(c, "ssh login refused")) == 4 })
	if first := c.book.records(c, "ssh login refused")[0]; first["keys"] != fingerprint(testKey("stranger")) || first["addr"] != "127.0.0.1" {
		t.Errorf("the log has %v", first)
	}
}

// Guards against masters: many sessions at once and one after the other on one
// connection, which lives on without any.
func TestOpenSSHMasterCarriesManySessions(t *testing.T) {
	c := withOpenSSH(t, nil)
	socket := filepath.Join(c.home, "s")
	master := c.command("-M", "-S", socket, "-N", "-i", c.key(), "front")
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- master.Wait() }()
	c.settle(func() bool { _, err := os.Stat(socket); return err == nil })
	for range 2 {
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				want := fmt.Sprint("session ", i)
				stdout, stderr, status := c.ssh(strings.NewReader(want), "-S", socket, "front", "cat")
				if stdout != want || status != 0 {
					t.Errorf("got %q, status %d: %s", stdout, status, stderr)
				}
			})
		}
		wg.Wait()
	}
	if _, stderr, status := c.ssh(nil, "-S", socket, "-O", "exit", "front"); status != 0 {
		t.Errorf("ssh -O exit: status %d: %s", status, stderr)
	}
	<-ended
	if n := len(c.book.records(c, "ssh login")); n != 1 {
		t.Errorf("%d logins, want one", n)
	}
}
