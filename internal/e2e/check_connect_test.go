package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// checked is what is looked at of nixbastion check --connect --json.
type checked struct {
	Builders []struct {
		Name     string
		OK       bool
		Usable   bool
		Nix      string
		Problems []struct{ Kind, What, Fix string }
	}
}

// Real builders of three releases of Nix are compared with what the policy says of
// them: each thing that is wrong is named with what to do, and what is right is ready.
// What the check says to do mends it. Guards against a check that says ready of a
// builder on which builds then fail.
func TestCheckConnectFindsWhatIsWrong(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	builder := func(name, nix string) testbed.HostSpec {
		return testbed.HostSpec{Name: name, Kind: testbed.Builder, Nix: nix, Features: []string{"benchmark"}}
	}
	hosts := bed.MustStart(t, builder("fine", testbed.Nix234), builder("old", testbed.Nix28), builder("middle", testbed.Nix226), builder("bound", testbed.Nix234))
	forceCommand(t, hosts[3], world.BuilderKey(bed, "proxy"), "nix-daemon --stdio")
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{
			{Host: hosts[0], Features: []string{"benchmark"}},
			{Host: hosts[1], Account: testbed.GuestAccount, Features: []string{"kvm"}},
			{Host: hosts[2], Systems: []string{testbed.NativeSystem, otherSystem}, Extra: []string{"load: {min_disk: 900TiB}"}},
			{Host: hosts[3], Features: []string{"unheard-of"}},
		},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	check := func(file string) (status int, kinds map[string]string, text string) {
		t.Helper()
		const quoted = " check --connect "
		began := time.Now()
		text = proxy.Host().MustShell(t, world.Binary+quoted+file+" || true")
		t.Logf("the check of %s took %s", file, time.Since(began).Round(time.Millisecond))
		res, err := proxy.Host().Shell(t.Context(), world.Binary+quoted+"--json "+file)
		if err != nil {
			t.Fatal(err)
		}
		var c checked
		if err := json.Unmarshal([]byte(res.Stdout), &c); err != nil {
			t.Fatalf("%v:\n%s", err, res.Stdout)
		}
		kinds = map[string]string{}
		for _, b := range c.Builders {
			var all []string
			for _, p := range b.Problems {
				all = append(all, p.Kind)
				wantText(t, "the text", text, "  "+p.Kind+": "+p.What+"\n    hint: "+p.Fix+"\n")
			}
			slices.Sort(all)
			kinds[b.Name] = strings.Join(all, " ")
			if b.OK != (len(all) == 0) {
				t.Errorf("%s is ok: %v\n%s", b.Name, b.OK, text)
			}
		}
		return res.Status, kinds, text
	}
	wants := func(what, file string, status int, want map[string]string) (text string) {
		t.Helper()
		got, kinds, text := check(file)
		if got != status {
			t.Errorf("%s: status %d, want %d", what, got, status)
		}
		for name, problems := range want {
			if kinds[name] != problems {
				t.Errorf("%s: %s has %q, want %q:\n%s", what, name, kinds[name], problems, text)
			}
		}
		return text
	}
	// Nix 2.8 does not say whom it trusts, so that is read of its settings.
	text := wants("as it is", world.ConfigFile, 1, map[string]string{"fine": "", "old": "features trust", "middle": "disk system", "bound": ""})
	wantText(t, "the check of an account with a forced command", text, "systems and features of the policy are believed: it does not run a shell")

	// What the hints say is done.
	hosts[1].MustShell(t, "printf 'extra-trusted-users = "+testbed.GuestAccount+"\\nextra-system-features = kvm\\n' >>/etc/nix/nix.conf")
	hosts[2].MustShell(t, "printf 'extra-platforms = "+otherSystem+"\\n' >>/etc/nix/nix.conf")
	proxy.Host().MustShell(t, "sed 's/min_disk: 900TiB/min_disk: 1MiB/' "+world.ConfigFile+" >/etc/nixbastion/mended.yaml")
	wants("mended", "/etc/nixbastion/mended.yaml", 0, map[string]string{"fine": "", "old": "", "middle": ""})

	proxy.Host().MustShell(t, "cd /etc/nixbastion && sed -e 's/fine:22/fine:2222/' -e 's/old:22/middle:22/' -e 's/user: "+testbed.TrustedAccount+"/user: nobody/' mended.yaml >wrong.yaml")
	wants("wrong ways", "/etc/nixbastion/wrong.yaml", 1, map[string]string{"fine": "unreachable", "old": "host key", "middle": "auth"})
}
