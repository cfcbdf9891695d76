package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A lane is a name of the proxy in a client's ssh_config, with a port and a key,
// behind a slow line.
type lane struct {
	relay *testbed.Relay
	entry string
}

// laneRate is how much goes over a lane, in bytes per second.
const laneRate = 2 << 20

// newLane starts a slow line on the client, and makes its entry.
func (g *gate) newLane(t *testing.T, client *testbed.Host, name string) lane {
	t.Helper()
	relay, err := client.Relay(testbed.RelaySpec{Target: "proxy:22", BytesPerSecond: laneRate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { relay.Close() })
	return lane{relay, fmt.Sprintf(`Host %s
  HostName %s
  Port %d
  HostKeyAlias proxy
  User nixremote
  IdentityFile %s
  IdentitiesOnly yes
`, name, client.Name(), relay.Port(), g.alice.File())}
}

// writeSSHConfig gives root of a client an ssh_config until the end of the test.
func writeSSHConfig(t *testing.T, client *testbed.Host, text string) {
	t.Helper()
	const file = "/root/.ssh/config"
	if err := client.WriteFile(t.Context(), file, []byte(text)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.WriteFile(context.WithoutCancel(t.Context()), file, nil); err != nil {
			t.Error(err)
		}
	})
}

// sent is what went to the proxy, in bytes.
func (l lane) sent() int64 {
	to, _ := l.relay.Bytes()
	return to
}

// Names, ports, users and keys of ssh_config work as with any host, and two names
// give a client two locks: it uploads over both at once. Guards against uploads of
// one client that wait for each other behind its own lock.
func TestS11AliasesUploadSideBySide(t *testing.T) {
	g := startGate(t)
	for _, client := range []*testbed.Host{g.client, g.old} {
		t.Run("with "+client.Nix(), func(t *testing.T) { g.testAliases(t, client) })
	}
}

func (g *gate) testAliases(t *testing.T, client *testbed.Host) {
	const size = 6 << 20
	one, two := g.newLane(t, client, "lane-one"), g.newLane(t, client, "lane-two")
	writeSSHConfig(t, client, one.entry+two.entry)
	machine := g.machine("ssh-ng", testbed.Key{})
	first, second := machine, machine
	first.Store, second.Store = "ssh-ng://lane-one", "ssh-ng://lane-two"
	setMachines(t, client, first, second)

	var all []testbed.Derivation
	var names []string
	for n := range 2 {
		source := fmt.Sprintf("/root/lane%d", n)
		client.MustShell(t, fmt.Sprintf("head -c %d /dev/urandom >%s", size, source))
		all = append(all, testbed.Derivation{Name: fmt.Sprintf("over-lane%d-%s", n, word(client.Nix())), Sources: []string{source}})
		names = append(names, all[n].Name)
	}
	mark := g.proxy.Mark()
	run := startScript(t, client, buildScript(writeExpression(t, client, all...), names)+" -j0")
	eventually(t, "both uploads are under way", patience, func() bool {
		return one.sent() > size/8 && two.sent() > size/8
	})
	if one.sent() > size || two.sent() > size {
		t.Errorf("%d and %d bytes went over the lanes: one upload waited for the other", one.sent(), two.sent())
	}
	locks := client.MustShell(t, "ls /nix/var/nix/current-load")
	wantText(t, "the client's locks", locks, "lane-one.upload-lock", "lane-two.upload-lock")
	run.mustSucceed(t)
	logins := 0
	for _, l := range g.proxy.LinesSince(mark) {
		if l.Msg == "ssh login" && strings.Contains(l.Text("user"), "nixremote") {
			logins++
		}
	}
	if logins < 2 {
		t.Errorf("%d logins under the name of the config, want two", logins)
	}
}

// The host key is made once: clients that took it at first sight check it strictly
// afterwards, over an orderly and a sudden end, and the lines that check prints
// are enough for a client that knows nothing. Guards against a key that is new
// after a restart.
func TestS12HostKeyStays(t *testing.T) {
	g := startGate(t)
	for _, client := range g.clients() {
		client.MustShell(t, g.knownPing("accept-new"))
	}
	for what, restart := range map[string]func() error{
		"SIGTERM": func() error { return g.proxy.Terminate(t.Context()) },
		"SIGKILL": g.proxy.Kill,
	} {
		if err := restart(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := g.proxy.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, client := range g.clients() {
			client.MustShell(t, g.knownPing("yes"))
		}
	}
	for _, client := range g.clients() {
		t.Run("check's lines for "+client.Nix(), func(t *testing.T) { g.testCheckLines(t, client) })
	}
}

// ignorant makes ssh look at no list of hosts but the one it is given.
const ignorant = "-oGlobalKnownHostsFile=/dev/null"

// knownPing asks the proxy with a list of hosts of the client's own.
func (g *gate) knownPing(strict string) string {
	return "NIX_SSHOPTS='" + ignorant + " -oUserKnownHostsFile=/root/known -oStrictHostKeyChecking=" + strict +
		"' nix store ping --store " + storeURI("ssh-ng", g.alice)
}

// testCheckLines builds with the machines line that the program prints, whose last
// field is the host key.
func (g *gate) testCheckLines(t *testing.T, client *testbed.Host) {
	said := g.proxy.Host().MustShell(t, world.Binary+" check --host proxy "+world.ConfigFile)
	line := strings.Fields(lineBeginning(t, said, "ssh-ng://proxy "))
	if len(line) != 8 || line[7] != hostKeyField(g.proxy) {
		t.Fatalf("the line has not the host key in its eighth field: %q", line)
	}
	line[2] = g.alice.File()
	strict := testbed.Derivation{Name: "strict-" + word(client.Nix())}
	script := "export NIX_SSHOPTS=" + ignorant + "; " + buildScript(writeExpression(t, client, strict), []string{strict.Name}) + " -j0"
	writeMachinesLine(t, client, line)
	startScript(t, client, script).mustSucceed(t)

	stranger := testbed.Derivation{Name: "to-a-stranger-" + word(client.Nix())}
	script = "export NIX_SSHOPTS=" + ignorant + "; " + buildScript(writeExpression(t, client, stranger), []string{stranger.Name}) + " -j0"
	line[7] = g.bed.HostKey("builder").MachinesField()
	writeMachinesLine(t, client, line)
	wantText(t, "the log of a client with another host key", startScript(t, client, script).mustFail(t), "Host key verification failed")

	if known := lineBeginning(t, said, "proxy ssh-ed25519 "); known != "proxy "+g.proxy.HostKey() {
		t.Errorf("the line for known_hosts is %q", known)
	}
}

func writeMachinesLine(t *testing.T, client *testbed.Host, fields []string) {
	t.Helper()
	if err := client.WriteFile(t.Context(), "/etc/nix/machines", []byte(strings.Join(fields, " ")+"\n")); err != nil {
		t.Fatal(err)
	}
}
