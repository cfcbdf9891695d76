package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// The admin sees a build, reads its log while it runs and when it has ended, and
// ends it: its processes are gone from the builder, Nix tells the user by whom and why,
// and does not try again. Guards against a kill that only looks like one.
func TestKilledBuildIsGoneAndItsUserReadsWhy(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	builder, client := hosts[0], hosts[1]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builder}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	admin := func(args string) string {
		return proxy.Host().MustShell(t, world.Binary+" "+args+" --config "+world.ConfigFile)
	}
	run, log := startWatched(t, client, gated("endless"))
	awaitText(t, client, log, "before the gate")
	var seen struct {
		UnderWay []struct {
			ID, Name, State, Phase, Builder string
			Principals                      []string
		} `json:"under_way"`
	}
	if err := json.Unmarshal([]byte(admin("builds --json")), &seen); err != nil || len(seen.UnderWay) != 1 {
		t.Fatalf("builds are %+v, %v", seen, err)
	}
	b := seen.UnderWay[0]
	if b.Name != "endless" || b.Phase != "build" || b.Builder != "builder" || len(b.Principals) != 1 || b.Principals[0] != "alice" {
		t.Errorf("the build is %+v", b)
	}
	if text := admin("log " + b.ID); !strings.Contains(text, "\nbefore the gate\n") {
		t.Errorf("its log is %q", text)
	}
	if text := admin("who"); !strings.Contains(text, "BuildDerivation endless") || !strings.Contains(text, client.Addr().String()) || !strings.Contains(text, "SHA256:") {
		t.Errorf("who says:\n%s", text)
	}
	if text := admin("kill " + b.ID + " --reason 'blocks the release'"); !strings.Contains(text, "is killed, which ran on 'builder'; 1 client was told") {
		t.Errorf("kill says %q", text)
	}
	const sentence = "was killed by root: blocks the release"
	if res := run.wait(t); res.Status == 0 {
		t.Error("nix-build has a result")
	}
	awaitText(t, client, log, sentence)
	awaitBuilds(t, builder, 0, patience)
	if n := timesRun(t, builder, "endless"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	if text := admin("builds --failed"); !strings.Contains(text, b.ID+"  endless") || !strings.Contains(text, "killed") {
		t.Errorf("builds --failed says:\n%s", text)
	}
	if err := proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := admin("log endless"); !strings.Contains(text, "\nbefore the gate\n") || !strings.Contains(text, sentence) {
		t.Errorf("after a restart its log is %q", text)
	}
}
