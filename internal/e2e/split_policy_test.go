package e2e

import (
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// splitDir is included by the policy of the proxy's host.
const splitDir = "/etc/nixbastion/policy.d"

// A policy in pieces lets in whom each piece names and builds with an identity that is
// a credential; a piece with a mistake changes nothing and is named; a piece that is
// gone takes its principals along. What check --print prints serves the same, and diff
// says who comes and who goes. Guards against pieces that only a check understands.
func TestASplitPolicyServesWhatItsPiecesSay(t *testing.T) {
	const credentials = "/etc/nixbastion/credentials"
	bed := testbed.ForTest(t)
	alice, bob := bed.UserKey("alice"), bed.UserKey("bob")
	hosts := bed.MustStart(t, testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 2},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{alice, bob}})
	client := hosts[1]
	proxy := startProxy(t, bed, world.ProxySpec{
		Env:        []string{"CREDENTIALS_DIRECTORY=" + credentials},
		Builders:   []world.Builder{{Host: hosts[0], MaxJobs: 2}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{alice}}},
	})
	whole := proxy.Spec().Policy(bed)
	host := proxy.Host()
	write := func(file, text string) {
		if err := host.WriteFile(t.Context(), file, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	host.MustShell(t, "mkdir -p "+credentials+" "+splitDir+" && mv /etc/nixbastion/builder-key "+credentials+" && chmod 440 "+credentials+"/builder-key")
	split := "include: policy.d\n" + strings.Replace(whole, "identity_file: /etc/nixbastion/builder-key", "identity_file: credential:builder-key", 1)
	reload := func(text string) error { return proxy.ReloadText(t.Context(), text) }
	bobs := func(role string) {
		write(splitDir+"/bob.yaml", "principals:\n  - name: bob\n    role: "+role+"\n    keys: ["+bob.AuthorizedLine()+"]\n")
	}
	mayBuild := func(key testbed.Key, name string) {
		t.Helper()
		setMachines(t, client, proxy.Machine(key))
		build(t, client, testbed.Derivation{Name: name})
	}

	bobs("full")
	if err := reload(split); err != nil {
		t.Fatal(err)
	}
	mayBuild(alice, "by-the-policy")
	mayBuild(bob, "by-a-piece")

	bobs("everything")
	if err, at := reload(split), splitDir+"/bob.yaml:3:11"; err == nil || !strings.Contains(err.Error(), at) {
		t.Errorf("a piece with a mistake at %s gave: %v", at, err)
	}
	mayBuild(bob, "by-the-piece-before")

	bobs("full")
	nixbastion := "env CREDENTIALS_DIRECTORY=" + credentials + " " + world.Binary + " "
	printed := host.MustShell(t, nixbastion+"check --print "+world.ConfigFile)
	wantText(t, "the printed policy", printed, "# policy.d/bob.yaml:2\n", "identity_file: credential:builder-key")
	host.MustShell(t, "rm "+splitDir+"/bob.yaml")
	write("/etc/nixbastion/printed.yaml", printed)
	res, err := host.Shell(t.Context(), nixbastion+"diff /etc/nixbastion/printed.yaml "+world.ConfigFile)
	if err != nil || res.Status != 1 {
		t.Fatalf("diff: %+v, %v", res, err)
	}
	wantText(t, "the difference", res.Stdout, "- principal bob is gone", "can no longer log in with key "+fingerprint(bob))
	if strings.Contains(res.Stdout, "alice") || strings.Contains(res.Stdout, "builder") {
		t.Errorf("somebody else changes:\n%s", res.Stdout)
	}
	if err := reload(printed); err != nil {
		t.Fatal(err)
	}
	mayBuild(bob, "by-the-printed-policy")

	if err := reload(split); err != nil {
		t.Fatal(err)
	}
	mayBuild(alice, "still-by-the-policy")
	if res, err := client.Shell(t.Context(), "nix store ping --store "+storeURI("ssh-ng", bob)); err != nil || res.Status == 0 {
		t.Errorf("bob gets in after his piece is gone: %+v, %v", res, err)
	}
}
