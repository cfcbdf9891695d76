package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
)

// The client is told which version answers and whether its key is trusted, in
// the words of its own version. Guards against a trust flag that is the account's
// instead of the key's: it decides how newer clients build.
func TestS05InfoTellsVersionAndTrust(t *testing.T) {
	g := startGate(t)
	for _, client := range g.clients() {
		t.Run("full with "+client.Nix(), func(t *testing.T) { g.testInfo(t, client, g.alice, true) })
		t.Run("read with "+client.Nix(), func(t *testing.T) { g.testInfo(t, client, g.reader, false) })
	}
}

func (g *gate) testInfo(t *testing.T, client *testbed.Host, key testbed.Key, trusted bool) {
	mark := g.proxy.Mark()
	for _, word := range infoWords(client) {
		res := startScript(t, client, "nix store "+word+" --store "+storeURI("ssh-ng", key)).wait(t)
		said := res.Stdout + res.Stderr
		if res.Status != 0 {
			t.Fatalf("nix store %s ended with status %d:\n%s", word, res.Status, said)
		}
		wantText(t, "nix store "+word, said, "ssh-ng://")
		if client.Nix() == testbed.Nix28 { // it shows the URL alone
			continue
		}
		number := map[bool]string{true: "1", false: "0"}[trusted]
		wantText(t, "nix store "+word, said, "Version: 2.34", "nixbastion", "Trusted: "+number)
		json := client.MustShell(t, "nix store "+word+" --json --store "+storeURI("ssh-ng", key))
		if value := fmt.Sprintf(`"trusted":%v`, trusted); !strings.Contains(json, value) && !strings.Contains(json, `"trusted":`+number) {
			t.Errorf("nix store %s --json lacks %s: %s", word, value, json)
		}
	}
	for _, l := range g.proxy.LinesSince(mark) {
		if l.Level == "ERROR" || l.Msg == "session ended" {
			t.Errorf("the proxy complains: %s", l.Raw)
		}
	}
}

// infoWords are what a version calls it; the old word stays.
func infoWords(client *testbed.Host) []string {
	if client.Nix() == testbed.Nix28 {
		return []string{"ping"}
	}
	return []string{"ping", "info"}
}

// With -j0 nothing is built at home, so that one sees whether builds are
// distributed: they are, under each version's own words for it. Guards against
// builds that look distributed and ran on the client.
func TestS30MaxJobsZeroShowsWhetherItDistributes(t *testing.T) {
	g := startGate(t)
	for _, client := range g.clients() {
		for _, scheme := range protocols {
			t.Run(scheme+" with "+client.Nix(), func(t *testing.T) { g.testDistributes(t, client, scheme) })
		}
	}
}

func (g *gate) testDistributes(t *testing.T, client *testbed.Host, scheme string) {
	away := testbed.Derivation{Name: "away-" + scheme + "-" + word(client.Nix())}
	script := buildScript(writeExpression(t, client, away), []string{away.Name})
	setMachines(t, client)
	said := startScript(t, client, script+" --max-jobs 0").mustFail(t)
	if len(builtOn(g.proxy, away.Name)) != 0 {
		t.Fatalf("it was built without a line for the proxy:\n%s", said)
	}
	setMachines(t, client, g.machine(scheme, g.alice))
	_, log := startScript(t, client, script+" --max-jobs 0").mustSucceed(t)
	wantText(t, "the client's log", log, "on '"+scheme+"://proxy'", "on '"+g.builder.Name()+"'")
	if got := builtOn(g.proxy, away.Name); len(got) != 1 {
		t.Errorf("it was built on %q, want once on %s", got, g.builder.Name())
	}
}
