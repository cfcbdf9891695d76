package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// usualKey is where the printed lines look for a client's own key.
const usualKey = "/root/.ssh/id_ed25519"

// Whoever asks `ssh H check` reads who he is for the proxy and what he may use, and
// gets lines that work when they are pasted. Guards against a ping that is fine
// while no build is ever sent, and against lines that look right.
func TestS32CheckPrintsLinesThatWork(t *testing.T) {
	bed := testbed.ForTest(t)
	key, reader := bed.UserKey("alice"), bed.UserKey("reader")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "b1", Kind: testbed.Builder, Features: []string{"kvm"}, MaxJobs: 2},
		testbed.HostSpec{Name: "b2", Kind: testbed.Builder, System: otherSystem},
		testbed.HostSpec{Name: "foreign", Kind: testbed.Builder, Features: []string{"secret"}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key, reader}})
	client := hosts[3]
	startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{
			{Host: hosts[0], Features: []string{"kvm"}, MaxJobs: 2},
			{Host: hosts[1], Systems: []string{otherSystem}},
			{Host: hosts[2], Features: []string{"secret"}, Domains: []string{"elsewhere"}},
		},
		Principals: []world.Principal{
			{Name: "alice", Keys: []testbed.Key{key}},
			{Name: "reader", Keys: []testbed.Key{reader}, Role: "read"},
		},
	})
	client.MustShell(t, "cp "+key.File()+" "+usualKey)
	check := client.MustShell(t, "ssh proxy check proxy")

	t.Run("what it says", func(t *testing.T) {
		wantText(t, "ssh proxy check", check, fingerprint(key), "alice", "full", "default", testbed.NativeSystem, otherSystem, "kvm",
			"builders = @/etc/nix/machines")
		for _, others := range []string{"secret", "foreign"} {
			if strings.Contains(check, others) {
				t.Errorf("it tells of another domain: %q\n%s", others, check)
			}
		}
		told := client.MustShell(t, "ssh -i "+reader.File()+" -o IdentitiesOnly=yes proxy check")
		wantText(t, "what a reader is told", told, fingerprint(reader), "reader", "read")
	})
	t.Run("for programs", func(t *testing.T) {
		told := client.MustShell(t, "ssh proxy check --json")
		if !json.Valid([]byte(told)) {
			t.Errorf("it is no JSON: %s", told)
		}
		wantText(t, "check --json", told, fingerprint(key), "alice", "full", "default", testbed.NativeSystem, "kvm")
	})
	// From here on the client knows no host key but by those lines.
	client.MustShell(t, "printf 'Host *\\n  GlobalKnownHostsFile /dev/null\\n' >/root/.ssh/config")
	wantText(t, "ssh to an unknown host", wantFails(t, client, "ssh proxy true"), "Host key verification failed")
	t.Run("the line for machines", func(t *testing.T) {
		line := lineBeginning(t, check, "ssh-ng://")
		if err := client.WriteFile(t.Context(), "/etc/nix/machines", []byte(line+"\n")); err != nil {
			t.Fatal(err)
		}
		for _, d := range []testbed.Derivation{
			{Name: "by-the-line"},
			{Name: "by-the-line-kvm", RequiredFeatures: []string{"kvm"}},
			{Name: "by-the-line-other", System: otherSystem},
		} {
			build(t, client, d)
		}
	})
	t.Run("the line for known_hosts", func(t *testing.T) {
		line := lineBeginning(t, check, "proxy ssh-ed25519 ")
		client.MustShell(t, "echo '"+line+"' >/root/.ssh/known_hosts && ssh proxy true && nix store ping --store ssh-ng://proxy")
	})
}

// lineBeginning returns the line of a text that begins so after blanks.
func lineBeginning(t *testing.T, text, begin string) string {
	t.Helper()
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, begin) {
			return line
		}
	}
	t.Fatalf("no line begins with %q:\n%s", begin, text)
	return ""
}
