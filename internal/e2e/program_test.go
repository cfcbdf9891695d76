package e2e

import (
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Users come with the store URIs of their builders: a program with a folder is as
// good as one without, and another store is refused or ignored as the policy says.
// Guards against parsing what one version of Nix sends and another quotes.
func TestS22ProgramAndStoreOfTheURI(t *testing.T) {
	g := startGate(t)
	for _, client := range g.clients() {
		t.Run("program with "+client.Nix(), func(t *testing.T) { g.testRemoteProgram(t, client) })
		t.Run("store refused to "+client.Nix(), func(t *testing.T) { g.testRemoteStore(t, client, false) })
	}
	t.Run("as policy says", func(t *testing.T) {
		withPolicy(t, g.proxy, func(spec *world.ProxySpec) {
			spec.Extra = "commands: {remote_store: ignore, remote_program: refuse}\n"
		})
		for _, client := range g.clients() {
			t.Run("program refused to "+client.Nix(), func(t *testing.T) { g.testProgramRefused(t, client) })
			t.Run("store ignored for "+client.Nix(), func(t *testing.T) { g.testRemoteStore(t, client, true) })
		}
	})
}

// programs are the words by which the protocols are asked for.
var programs = map[string]string{"ssh-ng": "nix-daemon", "ssh": "nix-store"}

// pinged runs a ping with more parameters in the URI.
func (g *gate) pinged(t *testing.T, client *testbed.Host, scheme, parameters string) testbed.Result {
	t.Helper()
	uri := scheme + "://proxy?ssh-key=" + g.alice.File() + "&" + parameters
	return startScript(t, client, "nix store ping --store '"+uri+"'").wait(t)
}

func (g *gate) testRemoteProgram(t *testing.T, client *testbed.Host) {
	for _, scheme := range protocols {
		for _, dir := range []string{"/opt/nix/bin/", "/run/current-system/sw/bin/", ""} {
			if res := g.pinged(t, client, scheme, "remote-program="+dir+programs[scheme]); res.Status != 0 {
				t.Errorf("%s with program %s%s: status %d\n%s", scheme, dir, programs[scheme], res.Status, res.Stderr)
			}
		}
		res := g.pinged(t, client, scheme, "remote-program=/usr/bin/env")
		if res.Status == 0 {
			t.Errorf("%s with program env is served", scheme)
		}
		wantText(t, "the client's output", res.Stderr, "nixbastion: ")
	}
	// As a list, which newer versions split at blanks: sudo is what people add.
	if client.Nix() == testbed.Nix28 {
		return
	}
	if res := g.pinged(t, client, "ssh-ng", "remote-program=sudo%20-n%20nix-daemon"); res.Status != 0 {
		t.Errorf("a program of several words: status %d\n%s", res.Status, res.Stderr)
	}
}

func (g *gate) testProgramRefused(t *testing.T, client *testbed.Host) {
	for _, scheme := range protocols {
		if res := g.pinged(t, client, scheme, "remote-program="+programs[scheme]); res.Status != 0 {
			t.Errorf("the plain program is refused: %s", res.Stderr)
		}
		res := g.pinged(t, client, scheme, "remote-program=/opt/nix/bin/"+programs[scheme])
		if res.Status == 0 {
			t.Errorf("%s: a program with a folder is served against the policy", scheme)
		}
		wantText(t, "the client's output", res.Stderr, "nixbastion: ", "remote-program")
	}
}

// testRemoteStore asks for another store, in the words of a URI that versions
// quote differently on their way to the command.
func (g *gate) testRemoteStore(t *testing.T, client *testbed.Host, served bool) {
	stores := []string{"daemon", "local%3Froot%3D%2Ftmp%2Fx%26real%3D%2Ftmp%2Fy"}
	if client.Nix() == testbed.Nix28 { // newer ones do not quote it, and make two words of it
		stores = append(stores, "/tmp/a%20b")
	}
	for _, scheme := range protocols {
		for _, store := range stores {
			res := g.pinged(t, client, scheme, "remote-store="+store)
			if (res.Status == 0) != served {
				t.Errorf("%s with remote-store %s: status %d, served should be %v\n%s", scheme, store, res.Status, served, res.Stderr)
			}
			if !served {
				wantText(t, "the client's output", res.Stderr, "nixbastion: ", "remote-store")
			}
		}
	}
}
