package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A person's agent has many keys, and the right one may come last. Guards against
// a limit of tries that is right for passwords, and against the client's ssh being
// sent away before it came to the key.
func TestS07RightKeyLastInTheAgent(t *testing.T) {
	g := startGate(t)
	for _, client := range g.clients() {
		t.Run("with "+client.Nix(), func(t *testing.T) { g.testAgent(t, client) })
	}
}

// withAgent is a script that runs another one with an agent of n strange keys and
// then those of files.
func withAgent(script string, n int, files ...string) string {
	return fmt.Sprintf(`set -e
eval $(ssh-agent) >/dev/null; trap 'ssh-agent -k >/dev/null' EXIT
dir=$(mktemp -d)
for n in $(seq %d); do ssh-keygen -q -t ed25519 -N '' -f $dir/$n; ssh-add -q $dir/$n; done
ssh-add -q %s
%s
`, n, strings.Join(files, " "), script)
}

func (g *gate) testAgent(t *testing.T, client *testbed.Host) {
	const others = 11
	mark := g.proxy.Mark()
	run := startScript(t, client, withAgent("ssh -v nix@proxy nix-store --serve </dev/null", others, g.alice.File()))
	res := run.wait(t)
	if offers := strings.Count(res.Stderr, "Offering public key"); offers != others+1 {
		t.Fatalf("the client offered %d keys, want %d:\n%s", offers, others+1, res.Stderr)
	}
	login := waitLine(t, g.proxy, mark, world.Message("ssh login"))
	if login.Text("principal") != "alice" {
		t.Errorf("somebody else logged in: %s", login.Raw)
	}

	// Nix gives its ssh the agent too, as long as it is root that asks.
	far := testbed.Derivation{Name: "by-agent-" + word(client.Nix())}
	machine := g.machine("ssh-ng", testbed.Key{})
	setMachines(t, client, machine)
	script := withAgent("nix store ping --store ssh-ng://proxy; "+strings.TrimPrefix(buildScript(writeExpression(t, client, far), []string{far.Name}), "exec "),
		others, g.alice.File())
	startScript(t, client, script).mustSucceed(t)

	// Where the config says so the agent's other keys are not even offered.
	only := "ssh -v -o IdentitiesOnly=yes -i " + g.alice.File() + " nix@proxy nix-store --serve </dev/null"
	res = startScript(t, client, withAgent(only, others, g.alice.File())).wait(t)
	if offers := strings.Count(res.Stderr, "Offering public key"); offers != 1 {
		t.Errorf("the client offered %d keys, want one", offers)
	}
	mark = g.proxy.Mark()
	startScript(t, client, withAgent("ssh nix@proxy nix-store --serve </dev/null", others, g.stranger.File())).mustFail(t)
	waitLine(t, g.proxy, mark, world.Message("ssh login refused", "keys", fingerprint(g.stranger)))
}
