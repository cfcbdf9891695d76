package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// startActivated starts a proxy whose socket systemd-socket-activate has, with one
// builder and one client.
func startActivated(t *testing.T, slots int) (proxy *world.Proxy, builder, client *testbed.Host, key testbed.Key) {
	t.Helper()
	bed := testbed.ForTest(t)
	key = bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "b1", Kind: testbed.Builder, MaxJobs: slots},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	builder, client = hosts[0], hosts[1]
	proxy = startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builder, MaxJobs: slots}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Activated:  true,
	})
	machine := proxy.Machine(key)
	machine.MaxJobs = slots
	setMachines(t, client, machine)
	return proxy, builder, client, key
}

// A build that runs while the proxy is upgraded ends in the old process, and what it
// made is in the new one's store; a build that runs while the proxy is restarted ends
// before, and a client that comes meanwhile waits. Guards against updates of the proxy that
// cost a build.
func TestUpgradeAndRestartCostNoBuild(t *testing.T) {
	proxy, builder, client, _ := startActivated(t, 2)
	run, log := startWatched(t, client, gated("upgraded"))
	awaitText(t, client, log, "before the gate")
	if _, err := proxy.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	build(t, client, testbed.Derivation{Name: "new"})
	if n, err := proxy.Processes(); err != nil || n != 2 {
		t.Errorf("%d processes run, %v", n, err)
	}
	openGate(t, builder, "upgraded")
	paths, _ := run.mustSucceed(t)
	eventually(t, "the old process has ended", patience, func() bool {
		n, err := proxy.Processes()
		return err == nil && n == 1
	})
	verifyAll(t, proxy.Host())
	client.MustShell(t, "nix-store --delete "+paths[0]+
		" && nix copy --no-check-sigs --from 'ssh-ng://proxy?ssh-key=/root/.ssh/alice' "+paths[0]+" && nix-store --verify-path "+paths[0])

	run, log = startWatched(t, client, gated("restarted"))
	awaitText(t, client, log, "before the gate")
	restarted := make(chan error, 1)
	go func() {
		_, err := proxy.Restart(t.Context())
		restarted <- err
	}()
	awaitText(t, client, log, "this host restarts; the build goes on")
	waiting := startScript(t, client, "ssh -i /root/.ssh/alice proxy status")
	openGate(t, builder, "restarted")
	run.mustSucceed(t)
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	if res := waiting.wait(t); res.Status != 0 || !strings.Contains(res.Stdout, "b1") {
		t.Errorf("who came meanwhile: status %d\n%s%s", res.Status, res.Stdout, res.Stderr)
	}
	for _, name := range []string{"upgraded", "restarted"} {
		if n := timesRun(t, builder, name); n != 1 {
			t.Errorf("%s ran %d times", name, n)
		}
	}
	wantBothProcessesInTheAuditLog(t, proxy.Host(), "upgraded", "new", "restarted")
}

// Guards against builds of the old process that nobody can prove, and against two
// processes that break each other's chain.
func wantBothProcessesInTheAuditLog(t *testing.T, host *testbed.Host, names ...string) {
	t.Helper()
	const audit = world.Binary + " audit "
	if text := host.MustShell(t, audit+"verify --config "+world.ConfigFile); strings.Count(text, "lines are whole") != 2 || strings.Contains(text, "note: ") {
		t.Errorf("audit verify: %s", text)
	}
	for _, name := range names {
		if text := host.MustShell(t, audit+"grep --event build --drv="+name+".drv --config "+world.ConfigFile); strings.Count(text, "\n") != 1 || !strings.Contains(text, "result=Built") {
			t.Errorf("build of %s: %q", name, text)
		}
	}
}

// soakBuilds is how many builds run at once while the proxy is replaced again and again,
// and loginsEvery the pause between clients that log in.
const (
	soakBuilds  = 8
	loginsEvery = "0.05"
	replacings  = 100
)

// Guards against updates of the proxy that somebody notices once in a hundred times.
func TestSoakUpgrades(t *testing.T) {
	onlyInSoak(t)
	soakReplaced(t, (*world.Proxy).Upgrade)
}

// Guards against restarts that somebody notices once in a hundred times.
func TestSoakRestarts(t *testing.T) {
	onlyInSoak(t)
	soakReplaced(t, (*world.Proxy).Restart)
}

// soakReplaced replaces the process while builds run and clients log in, and wants none
// of either to fail. How long the new process took is noted.
func soakReplaced(t *testing.T, replace func(*world.Proxy, context.Context) (time.Duration, error)) {
	c := counted(t)
	proxy, _, client, _ := startActivated(t, soakBuilds)
	client.MustShell(t, "ssh -i /root/.ssh/alice -o StrictHostKeyChecking=yes proxy status")
	logins := startScriptFor(t, time.Hour, client, `
		login() { ssh -i /root/.ssh/alice proxy status >/dev/null 2>/tmp/login.$1 && rm /tmp/login.$1; }
		for i in $(seq 1000000); do test -e /tmp/stop && break; login $i & sleep `+loginsEvery+`; done
		wait; echo $i`)
	var took []time.Duration
	var batch *running
	for n := range replacings {
		if batch == nil || ended(batch, 0) {
			if batch != nil {
				batch.mustSucceed(t)
			}
			all := testbed.Numbered(10*soakBuilds, testbed.Derivation{Name: fmt.Sprintf("round%d", n), Work: 4 * time.Second})
			batch = startBuildFor(t, 10*time.Minute, client, writeExpression(t, client, all...), namesOf(all))
		}
		one, err := replace(proxy, t.Context())
		if err != nil {
			t.Fatalf("replacing %d: %v", n, err)
		}
		took = append(took, one)
		c.rounds++
		if rss, err := proxy.RssAnon(); err == nil { // of the new one, which may be replaced already
			c.saw(rss)
		}
	}
	batch.mustSucceed(t)
	client.MustShell(t, "touch /tmp/stop")
	slices.Sort(took)
	c.note("%s logins", strings.TrimSpace(logins.wait(t).Stdout))
	c.note("new process ready in %s (middle), %s (longest)", took[len(took)/2], took[len(took)-1])
	if failed := client.MustShell(t, "cat /tmp/login.* 2>/dev/null; ls /tmp/login.* 2>/dev/null | wc -l"); strings.TrimSpace(failed) != "0" {
		t.Errorf("logins failed:\n%s", tail(failed))
	}
	eventually(t, "only the last process runs", patience, func() bool {
		n, err := proxy.Processes()
		return err == nil && n == 1
	})
	verifyAll(t, proxy.Host())
}
