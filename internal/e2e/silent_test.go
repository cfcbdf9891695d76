package e2e

import (
	"slices"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Peers that fall silent, as a laptop does whose lid is closed, are given up
// after the keep-alive's time: a builder's build goes to another one, a
// client's build ends. Guards against waiting for ever for those who cannot even
// hang up.
func TestSoakSilentPeers(t *testing.T) {
	onlyInSoak(t)
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "b1", Kind: testbed.Builder},
		testbed.HostSpec{Name: "b2", Kind: testbed.Builder},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	builders, client := hosts[:2], hosts[2]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builders[0]}, {Host: builders[1]}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
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

	_, log = startWatched(t, client, gated("orphan"))
	awaitText(t, client, log, "before the gate")
	if err := client.Cut(); err != nil {
		t.Fatal(err)
	}
	const keepAlive = 60 * time.Second // one pause, and three misses
	awaitBuilds(t, other, 0, keepAlive+15*time.Second)
}
