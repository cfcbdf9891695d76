package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A backyard is a proxy through which alice may go to one of two builders, to an account
// that is not the proxy's own there. The gate is an ordinary sshd that is no builder.
type backyard struct {
	proxy           *world.Proxy
	builder1        *testbed.Host
	clients         map[string]*testbed.Host // by version of Nix
	gate            *testbed.Host
	alice, bob, eve testbed.Key
}

var commonBackyard common[*backyard]

func startBackyard(t *testing.T) *backyard {
	t.Helper()
	return commonBackyard.get(t, newBackyard)
}

func newBackyard(t *testing.T, bed *testbed.Bed) (*backyard, *world.Proxy) {
	y := &backyard{clients: map[string]*testbed.Host{}, alice: bed.UserKey("alice"), bob: bed.UserKey("bob"), eve: bed.UserKey("eve")}
	all := []testbed.Key{y.alice, y.bob, y.eve}
	guests := map[string][]testbed.Key{testbed.GuestAccount: all}
	specs := []testbed.HostSpec{
		{Name: "builder1", Kind: testbed.Builder, Authorize: guests},
		{Name: "builder2", Kind: testbed.Builder, Authorize: guests},
		{Name: "gate", Kind: testbed.Builder, Authorize: guests},
	}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: all})
	}
	hosts := bed.MustStart(t, specs...)
	y.builder1, y.gate = hosts[0], hosts[2]
	for i, v := range versions {
		y.clients[v] = hosts[3+i]
		y.as(t, y.clients[v], y.alice)
	}
	y.proxy = startCommonProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{{Host: hosts[0]}, {Host: hosts[1]}},
		Principals: []world.Principal{
			{Name: "alice", Keys: []testbed.Key{y.alice}, Extra: []string{"jump: [builder1]"}},
			{Name: "bob", Keys: []testbed.Key{y.bob}},
			// The admin was careless: what must not be reached is not even so.
			{Name: "eve", Keys: []testbed.Key{y.eve}, Extra: []string{`jump: ["0.0.0.0/0:22", "0.0.0.0/0:80", "[::/0]:22", "localhost:*", "*:2222"]`}},
		},
	})
	return y, y.proxy
}

// as makes a key the one that root of a client shows everywhere: -i on the command
// line is not for jump hosts.
func (y *backyard) as(t *testing.T, client *testbed.Host, key testbed.Key) {
	t.Helper()
	config := fmt.Sprintf("Host *\n  IdentityFile %s\n  IdentitiesOnly yes\nHost builder*\n  User %s\nHost gate\n  User %[2]s\n",
		key.File(), testbed.GuestAccount)
	if err := client.WriteFile(t.Context(), "/root/.ssh/config", []byte(config)); err != nil {
		t.Fatal(err)
	}
	client.MustShell(t, "chmod 600 /root/.ssh/config")
}

// Who has gone to the builders through a jump host goes through the proxy instead,
// to the targets of the list and to no others. Guards against a bastion that real
// clients cannot use, and against one that is open.
func TestS35ListedBuildersBehindTheProxy(t *testing.T) {
	y := startBackyard(t)
	for _, v := range versions {
		t.Run("jumps by "+v, func(t *testing.T) { y.testJump(t, y.clients[v]) })
	}
	t.Run("two lines in the log", y.testAudit)
	t.Run("not listed", y.testNotListed)
	t.Run("hostile targets", y.testHostile)
	t.Run("taken away", y.testTakenAway)
	t.Run("large streams", y.testStreams)
}

// testJump uses ssh and Nix as the guide does.
func (y *backyard) testJump(t *testing.T, client *testbed.Host) {
	client.MustShell(t, "ssh -J proxy builder1 true")
	got := client.MustShell(t, "echo question | ssh -J proxy builder1 'id -un; uname -n; cat; sleep 1; echo answer'")
	if want := testbed.GuestAccount + "\nbuilder1\nquestion\nanswer\n"; got != want {
		t.Errorf("the builder said %q, want %q", got, want)
	}
	res, err := client.Shell(t.Context(), "ssh -J proxy builder1 'exit 42'")
	if err != nil || res.Status != 42 {
		t.Errorf("status %d, want 42 (%v): %s", res.Status, err, res.Stderr)
	}
	for _, scheme := range protocols {
		ping := client.MustShell(t, "NIX_SSHOPTS='-J proxy' nix store ping --store "+scheme+"://builder1 2>&1")
		wantText(t, "nix store ping", ping, "Store URL: "+scheme+"://")
		if strings.Contains(ping, "Trusted: 1") {
			t.Errorf("the account behind the jump is trusted:\n%s", ping)
		}
	}
	// Something real, from a store that only the jump leads to.
	name := "through-" + word(client.Nix())
	path := strings.TrimSpace(y.builder1.MustShell(t, "echo "+name+" >/root/"+name+" && nix-store --add /root/"+name))
	client.MustShell(t, "NIX_SSHOPTS='-J proxy' nix copy --no-check-sigs --from ssh-ng://builder1 "+path+" && nix-store --verify-path "+path)
}

// testAudit wants to read who went where, for how long and with how much.
func (y *backyard) testAudit(t *testing.T) {
	client := y.clients[testbed.Nix234]
	mark := y.proxy.Mark()
	client.MustShell(t, "head -c 100000 /dev/zero | ssh -J proxy builder1 'cat >/dev/null; head -c 300000 /dev/zero' >/dev/null")
	opened := waitLine(t, y.proxy, mark, world.Message("ssh jump opened"))
	ended := waitLine(t, y.proxy, mark, world.Message("ssh jump ended"))
	for _, line := range []world.Line{opened, ended} {
		for field, want := range map[string]string{
			"principal": "alice", "key": fingerprint(y.alice), "addr": client.Addr().String(),
			"target": `"builder1:22"`, "dialled": y.builder1.Addr().String() + ":22",
		} {
			if got := line.Text(field); got != want {
				t.Errorf("%s is %q, want %q: %s", field, got, want, line.Raw)
			}
		}
	}
	var sent, received float64
	fmt.Sscan(ended.Text("sent"), &sent)
	fmt.Sscan(ended.Text("received"), &received)
	if sent < 100_000 || sent > 200_000 || received < 300_000 || received > 400_000 {
		t.Errorf("%.0f bytes sent and %.0f received: %s", sent, received, ended.Raw)
	}
}

const prohibited = "administratively prohibited"

// wantRefused wants that a client is told nothing but that it may not, and that the
// log has more.
func (y *backyard) wantRefused(t *testing.T, client *testbed.Host, command string) {
	t.Helper()
	mark := y.proxy.Mark()
	res, err := client.Shell(t.Context(), command+" </dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if res.Status != 255 || !lineWith(res.Stderr, prohibited, "this key may not go there") || res.Stdout != "" {
		t.Errorf("%s: status %d, %q, %q", command, res.Status, res.Stdout, res.Stderr)
	}
	if line := waitLine(t, y.proxy, mark, world.Message("ssh jump refused")); line.Text("reason") == "" {
		t.Errorf("%s is refused without a reason: %s", command, line.Raw)
	}
}

func (y *backyard) testNotListed(t *testing.T) {
	for _, v := range versions {
		y.wantRefused(t, y.clients[v], "ssh -J proxy builder2 true")
	}
	client := y.clients[testbed.Nix234]
	// The name is listed, neither its address nor another port of it.
	for _, target := range []string{y.builder1.Addr().String() + ":22", "builder1:80", "gate:22", "nobody:22"} {
		y.wantRefused(t, client, "ssh -W "+target+" proxy")
	}
	res, err := client.Shell(t.Context(), "NIX_SSHOPTS='-J proxy' nix store ping --store ssh-ng://builder2")
	if err != nil || res.Status == 0 {
		t.Errorf("a ping of a builder that is not listed: %+v, %v", res, err)
	}
	// Who may jump nowhere has builds all the same.
	y.as(t, client, y.bob)
	defer y.as(t, client, y.alice)
	y.wantRefused(t, client, "ssh -J proxy builder1 true")
	client.MustShell(t, "nix store ping --store "+storeURI("ssh-ng", y.bob))
}

// testHostile sends what leads to places that no list opens by being wide.
func (y *backyard) testHostile(t *testing.T) {
	client := y.clients[testbed.Nix234]
	y.as(t, client, y.eve)
	defer y.as(t, client, y.alice)
	proxy := y.proxy.Host().Addr().String()
	for _, target := range []string{
		"169.254.169.254:80", "169.254.169.254:22", "[fd00:ec2::254]:22", "[fe80::1]:22", "127.0.0.1:22", "127.8.8.8:22", "[::1]:22", "[::]:22", "0.0.0.0:22",
		"[::ffff:127.0.0.1]:22", "[::ffff:169.254.169.254]:22", "[64:ff9b::7f00:1]:22", "[2002:7f00:1::1]:22",
		"localhost:22", "localhost:80", "localhost.:22", "127.0.0.1.:22",
		"2130706433:22", "0x7f000001:22", "0177.0.0.1:22", "127.1:22", "0x7f.1:22", "2130706433:2222",
		proxy + ":22", "[::ffff:" + proxy + "]:22", "proxy:22", "builder1:22", "localhost:2222",
	} {
		y.wantRefused(t, client, "ssh -W '"+target+"' proxy")
	}
	// OpenSSH's own client sends no such port: 65536 and 22.
	y.testWrappedPort(t, client)
	// What is open is open.
	banner := client.MustShell(t, "sleep 1 | ssh -W "+y.gate.Addr().String()+":22 proxy")
	if !regexp.MustCompile(`^SSH-2\.0-OpenSSH`).MatchString(banner) {
		t.Errorf("the listed target says %q", banner)
	}
}

func (y *backyard) testWrappedPort(t *testing.T, client *testbed.Host) {
	t.Helper()
	conn, channels, requests, err := dialSSH(t.Context(), client, y.proxy, y.eve)
	if err != nil {
		t.Fatal(err)
	}
	direct := ssh.NewClient(conn, channels, requests)
	defer direct.Close()
	for _, port := range []uint32{0, 65536 + 22, 1<<32 - 1} {
		mark := y.proxy.Mark()
		_, _, err := direct.OpenChannel("direct-tcpip", ssh.Marshal(struct {
			Host     string
			Port     uint32
			From     string
			FromPort uint32
		}{y.gate.Addr().String(), port, "127.0.0.1", 1}))
		if err == nil || !strings.Contains(err.Error(), prohibited) {
			t.Errorf("port %d: %v", port, err)
		}
		waitLine(t, y.proxy, mark, world.Message("ssh jump refused"))
	}
}

// testTakenAway wants that a target which is taken from the list is closed to
// connections that were open before, and that jumps there end.
func (y *backyard) testTakenAway(t *testing.T) {
	client := y.clients[testbed.Nix234]
	master := startScript(t, client, "exec ssh -M -N -S /root/jump-master proxy")
	eventually(t, "the master is there", patience, func() bool {
		res, err := client.Shell(t.Context(), "ssh -S /root/jump-master -O check proxy")
		return err == nil && res.Status == 0
	})
	const jump = "ssh -o ProxyCommand='ssh -S /root/jump-master -W [%h]:%p proxy' builder1 "
	client.MustShell(t, jump+"true")
	mark := y.proxy.Mark()
	held := startScript(t, client, "mkfifo /root/word; exec 3<>/root/word; "+jump+"'read word; echo $word' <&3")
	waitLine(t, y.proxy, mark, world.Message("ssh jump opened"))
	withPolicy(t, y.proxy, func(s *world.ProxySpec) { s.Principals[0].Extra = nil })
	mark = y.proxy.Mark()
	res, err := client.Shell(t.Context(), jump+"true")
	if err != nil || res.Status != 255 {
		t.Errorf("a jump to what is not listed any more: %+v, %v", res, err)
	}
	waitLine(t, y.proxy, mark, world.Message("ssh jump refused", "target", `"builder1:22"`))
	// What was open ends, too, and the connection goes on.
	if res := held.wait(t); res.Status != 255 || res.Stdout != "" {
		t.Errorf("the jump that was open ended with status %d and %q: %s", res.Status, res.Stdout, res.Stderr)
	}
	client.MustShell(t, "ssh -S /root/jump-master -O check proxy")
	master.kill()
}

// testStreams ends each direction before the other one, and wants every byte.
func (y *backyard) testStreams(t *testing.T) {
	client := y.clients[testbed.Nix234]
	client.MustShell(t, `set -e
dd if=/dev/urandom of=/root/stream bs=1M count=32 status=none
sum=$(sha256sum </root/stream)
test "$(ssh -J proxy builder1 sha256sum </root/stream)" = "$sum"
test "$(ssh -J proxy builder1 cat </root/stream | sha256sum)" = "$sum"`)
}
