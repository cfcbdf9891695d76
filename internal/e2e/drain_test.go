package e2e

import (
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// The admin takes a builder away: what runs there ends there, new builds go
// elsewhere, he can wait for the moment to switch it off, and a restart of the proxy
// changes none of it. Guards against builds that a repair of a builder costs.
func TestDrainedBuilderIsLeftInPeace(t *testing.T) {
	bed, key, builders, client := twoBuilders(t)
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builders[0], MaxJobs: 2, SpeedFactor: 2}, {Host: builders[1], MaxJobs: 2}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	admin := func(args string) string {
		return proxy.Host().MustShell(t, world.Binary+" "+args+" --config "+world.ConfigFile)
	}
	long := gated("long")
	run, log := startWatched(t, client, long)
	awaitText(t, client, log, "before the gate")
	if n := runningBuilds(t, builders[0]); n != 1 {
		t.Fatalf("%d builds run on b1", n)
	}
	drained := startScript(t, proxy.Host(), world.Binary+" drain --wait b1 --reason 'new disk' --config "+world.ConfigFile)
	eventually(t, "b1 is drained", patience, func() bool {
		return strings.Contains(status(t, proxy), "b1 is drained: new disk; 1 build still runs there")
	})
	for _, name := range []string{"one", "two"} {
		build(t, client, testbed.Derivation{Name: name})
		if got := builtOn(proxy, name); len(got) != 1 || got[0] != "b2" {
			t.Errorf("%s was built on %q", name, got)
		}
	}
	openGate(t, builders[0], "long")
	run.mustSucceed(t)
	if res := drained.wait(t); res.Status != 0 || !strings.Contains(res.Stdout, "waiting for 'b1': 1 running") || !strings.HasSuffix(res.Stdout, "nothing runs on 'b1' any more\n") {
		t.Errorf("drain --wait: status %d\n%s%s", res.Status, res.Stdout, res.Stderr)
	}
	eventually(t, "the connections are closed", patience, func() bool { return !established(t, builders[0]) })
	if err := proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // in which all builders are looked at
	build(t, client, testbed.Derivation{Name: "three"})
	if got := builtOn(proxy, "three"); len(got) != 1 || got[0] != "b2" || !strings.Contains(status(t, proxy), "b1 is drained: new disk") {
		t.Errorf("after a restart it was built on %q:\n%s", got, status(t, proxy))
	}
	if out := admin("undrain b1"); out != "builder 'b1' is drained no more\n" {
		t.Errorf("undrain says %q", out)
	}
	build(t, client, testbed.Derivation{Name: "four"})
	if got := builtOn(proxy, "four"); len(got) != 1 || got[0] != "b1" {
		t.Errorf("after undrain it was built on %q", got)
	}
}

// established reports whether somebody is connected to a host's sshd.
func established(t *testing.T, host *testbed.Host) bool {
	t.Helper()
	for _, line := range strings.Split(host.MustShell(t, "cat /proc/net/tcp /proc/net/tcp6"), "\n") {
		if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], ":0016") && f[3] == "01" {
			return true
		}
	}
	return false
}

// The admin takes a builder away right after an upgrade: the old process begins nothing
// there any more, and nobody says that nothing runs there while it may have builds.
// Guards against a builder that is switched off under a build.
func TestDrainReachesTheOldProcess(t *testing.T) {
	bed, key, builders, client := twoBuilders(t)
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builders[0], SpeedFactor: 2}, {Host: builders[1]}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	long1, log1 := startWatched(t, client, gated("long1"))
	awaitText(t, client, log1, "before the gate")
	long2, log2 := startWatched(t, client, gated("long2"))
	awaitText(t, client, log2, "before the gate")
	queued, log3 := startWatched(t, client, testbed.Derivation{Name: "queued"})
	awaitText(t, client, log3, "waiting: next in the queue")
	if _, err := proxy.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	waiting := startScript(t, proxy.Host(), world.Binary+" drain --wait b1 --config "+world.ConfigFile)
	eventually(t, "b1 is drained", patience, func() bool { return strings.Contains(status(t, proxy), "b1 is drained") })
	if text := status(t, proxy); !strings.Contains(text, "an old process still ends its builds") {
		t.Errorf("status says nothing of the old process:\n%s", text)
	}
	waitLine(t, proxy, 0, world.Message("another process has changed which builders are drained"))
	openGate(t, builders[0], "long1")
	long1.mustSucceed(t)
	openGate(t, builders[1], "long2")
	long2.mustSucceed(t)
	queued.mustSucceed(t)
	if got := builtOn(proxy, "queued"); len(got) != 1 || got[0] != "b2" {
		t.Errorf("after the drain it was built on %q", got)
	}
	if res := waiting.wait(t); res.Status != 0 || !strings.Contains(res.Stdout, "waiting for an old process") || !strings.HasSuffix(res.Stdout, "nothing runs on 'b1' any more\n") {
		t.Errorf("drain --wait: status %d\n%s%s", res.Status, res.Stdout, res.Stderr)
	}
	if n, err := proxy.Processes(); err != nil || n != 1 {
		t.Errorf("%d processes run when it has waited, %v", n, err)
	}
}
