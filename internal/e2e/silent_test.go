package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Peers that fall silent, as a laptop does whose lid is closed, are given up
// after the keep-alive's time: a builder's build goes to another one, a
// client's build ends, or lingers if the policy says so. Guards against waiting for ever for those who cannot even
// hang up.
func TestSoakSilentPeers(t *testing.T) {
	onlyInSoak(t)
	bed, key, builders, client := twoBuilders(t)
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builders[0]}, {Host: builders[1]}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Extra:      "scheduling: {linger: 10m}\n",
	})
	setMachines(t, client, proxy.Machine(key))

	moved := gated("moved")
	run, log := startWatched(t, client, moved)
	awaitText(t, client, log, "before the gate")
	silent := slices.IndexFunc(builders, func(b *testbed.Host) bool { return runningBuilds(t, b) == 1 })
	if silent < 0 {
		t.Fatal("the build runs nowhere")
	}
	other := builders[1-silent]
	openGate(t, other, moved.Name)
	if err := builders[silent].Cut(); err != nil {
		t.Fatal(err)
	}
	run.mustSucceed(t)
	t.Logf("the build took %v with a builder that fell silent", run.took)

	kept := gated("kept")
	_, log = startWatched(t, client, kept)
	awaitText(t, client, log, "before the gate")
	sleepFor(t, client, proxy)
	again, log := startWatched(t, client, kept)
	awaitText(t, client, log, "before the gate")
	openGate(t, other, kept.Name)
	again.mustSucceed(t)
	if n := timesRun(t, other, kept.Name); n != 1 {
		t.Errorf("the build of a client that was away was begun %d times", n)
	}

	withPolicy(t, proxy, func(spec *world.ProxySpec) { spec.Extra = "scheduling: {linger: 0s}\n" })
	_, log = startWatched(t, client, gated("orphan"))
	awaitText(t, client, log, "before the gate")
	since := time.Now()
	sleepFor(t, client, proxy)
	awaitBuilds(t, other, 0, patience)
	t.Logf("the build of a client that fell silent was gone after %v", time.Since(since))
}

// sleepFor cuts a client off until the proxy has given it up.
func sleepFor(t *testing.T, client *testbed.Host, proxy *world.Proxy) {
	t.Helper()
	mark := proxy.Mark()
	if err := client.Cut(); err != nil {
		t.Fatal(err)
	}
	ended := waitLine(t, proxy, mark, world.Message("ssh connection ended", "addr", client.Addr().String()))
	if !strings.Contains(ended.Text("reason"), "no sign of life") {
		t.Errorf("the connection ended for another reason: %s", ended.Raw)
	}
	if err := client.Restore(); err != nil {
		t.Fatal(err)
	}
}
