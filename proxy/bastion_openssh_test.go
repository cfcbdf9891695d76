package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// withBastion is OpenSSH's client with a Front that leads to a builder, which is
// another Front: "builder1" for those who jump. What more is listed may be nothing.
func withBastion(t *testing.T, more ...policy.JumpTarget) (c *openSSH, builder *site) {
	t.Helper()
	builder = onLoopback(t, nil)
	pol := &policy.Policy{Builders: []policy.Builder{{Name: "builder1", Address: builder.addr}}}
	access := accessTo(append([]policy.JumpTarget{onBuilder("builder1")}, more...)...)
	c = withOpenSSH(t, func(o *FrontOptions) {
		o.Jump = func(ctx context.Context, _ *Identity, host string, port uint32) (JumpConn, error) {
			b := bastion{
				lookup: net.DefaultResolver.LookupNetIP, dial: dialTarget,
				machine: func() (machine, error) { return ownMachine(c.front.addresses()) },
			}
			return b.connect(ctx, pol, access, host, port)
		}
	})
	host, port, err := net.SplitHostPort(c.addr)
	if err != nil {
		t.Fatal(err)
	}
	c.file("known_hosts", fmt.Sprintf("[%s]:%s,builder1 %s", host, port, ssh.MarshalAuthorizedKey(c.hostKey)))
	c.file("config", fmt.Sprintf(`
Host front
  HostName %s
  Port %s
Host *
  User nix
  BatchMode yes
  StrictHostKeyChecking yes
  UserKnownHostsFile %[3]s/known_hosts
  GlobalKnownHostsFile none
  IdentitiesOnly yes
  IdentityFile %[4]s
  ConnectTimeout 30
`, host, port, c.home, c.key()))
	return c, builder
}

// Guards against a bastion that real clients cannot use: `ssh -J` as users type it,
// with output, input, status and half-close at the other end.
func TestOpenSSHJumpsToABuilder(t *testing.T) {
	c, builder := withBastion(t)
	stdout, stderr, status := c.ssh(nil, "-J", "front", "builder1", "whoami")
	if want := "alice " + fingerprint(testKey("alice")) + " data of alice"; stdout != want || status != 0 {
		t.Fatalf("got %q and status %d, want %q; stderr:\n%s", stdout, status, want, stderr)
	}
	data := bytes.Repeat(sha256sum(4), 3<<20/32) // more than a window
	stdout, stderr, status = c.ssh(bytes.NewReader(data), "-J", "front", "builder1", "cat")
	if stdout != string(data) || status != 0 {
		t.Errorf("%d bytes came back of %d, status %d: %s", len(stdout), len(data), status, stderr)
	}
	stdout, stderr, status = c.ssh(bytes.NewReader(data), "-J", "front", "builder1", "digest")
	if want := fmt.Sprintf("%d %x <nil>", len(data), sha256.Sum256(data)); stdout != want || status != 0 {
		t.Errorf("got %q, status %d: %s", stdout, status, stderr)
	}
	if _, stderr, status := c.ssh(nil, "-J", "front", "builder1", "exit 42"); status != 42 {
		t.Errorf("status %d, want 42: %s", status, stderr)
	}
	c.settle(func() bool { return len(c.book.records(c, "ssh jump ended")) == 4 })
	for _, record := range c.book.records(c, "ssh jump ended") {
		if record["principal"] != "alice" || record["target"] != `"builder1:22"` || record["dialled"] != builder.addr {
			t.Errorf("the log has %v", record)
		}
	}
	if held := len(c.front.jumps); held != 0 {
		t.Errorf("%d jumps are held", held)
	}
}

// Guards against every target that the bastion must refuse, as a real client sends
// it, and against answers that tell one from another.
func TestOpenSSHCannotJumpElsewhere(t *testing.T) {
	c, builder := withBastion(t, onHost("*.localhost", 0), onHost("localhost", 0), onNet("0.0.0.0/0", 22), onNet("::/0", 22))
	_, port, _ := net.SplitHostPort(builder.addr)
	_, own, _ := net.SplitHostPort(c.addr)
	for _, to := range []string{
		"builder1:" + own, "builder2:22", "BUILDER1:80", builder.addr, c.addr, "localhost:" + own, "localhost:" + port,
		"127.0.0.1:22", "[::1]:22", "[::ffff:127.0.0.1]:22", "[::ffff:7f00:1]:22", "0.0.0.0:22", "[::]:22", "169.254.169.254:22", "169.254.169.254:80",
		"2130706433:22", "0x7f000001:22", "0x7f.1:22", "0177.0.0.1:22", "127.1:22", "127.0.0.1.:22", "localhost.:22", "[fe80::1%lo]:22",
		"[64:ff9b::7f00:1]:22", "[2002:7f00:1::1]:22", "[fd00:ec2::254]:22", "10.0.0.1:65535",
	} {
		stdout, stderr, status := c.ssh(nil, "-W", to, "front")
		if stdout != "" || status == 0 || !strings.Contains(stderr, "open failed: administratively prohibited: "+jumpRefused) {
			t.Errorf("-W %s: status %d, %q, %q", to, status, stdout, stderr)
		}
	}
	_, stderr, status := c.ssh(nil, "-J", "front", "builder2", "say hello")
	if status != 255 || !strings.Contains(stderr, "administratively prohibited") {
		t.Errorf("-J to another builder: status %d, %q", status, stderr)
	}
}

// Guards against people who do not learn why they do not get through.
func TestOpenSSHTellsWhyATargetIsNotReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := addrPort(l.Addr())
	l.Close()
	c, _ := withBastion(t, onNet(netip.PrefixFrom(closed.Addr(), 32).String(), closed.Port()))
	_, stderr, status := c.ssh(nil, "-W", closed.String(), "front")
	if status == 0 || !strings.Contains(stderr, "open failed: connect failed: nixbastion: connection refused") {
		t.Errorf("status %d, %q", status, stderr)
	}
	c.logged("ssh jump failed", "target", closed.String(), "reason", "connection refused")
}

// Guards against a master that carries jumps beside commands, and ends one with the
// other.
func TestOpenSSHMasterCarriesJumpsAndCommands(t *testing.T) {
	c, _ := withBastion(t)
	socket := c.home + "/s"
	master := c.command("-M", "-S", socket, "-N", "front")
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- master.Wait() }()
	c.settle(func() bool { _, _, status := c.ssh(nil, "-S", socket, "-O", "check", "front"); return status == 0 })
	for range 3 {
		proxied := []string{"-o", "ProxyCommand=ssh -F " + c.home + "/config -S " + socket + " -W [%h]:%p front", "builder1", "say jumped"}
		if stdout, stderr, status := c.ssh(nil, proxied...); stdout != "jumped" || status != 0 {
			t.Errorf("got %q, status %d: %s", stdout, status, stderr)
		}
		if stdout, stderr, status := c.ssh(nil, "-S", socket, "front", "say here"); stdout != "here" || status != 0 {
			t.Errorf("got %q, status %d: %s", stdout, status, stderr)
		}
	}
	c.ssh(nil, "-S", socket, "-O", "exit", "front")
	<-ended
}
