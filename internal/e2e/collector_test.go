package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Builders whose garbage collector runs all the time, by hand and by itself, lose
// nothing that a build needs. Guards against inputs that were there when the builder
// was asked and are gone when the build begins.
func TestGarbageCollectorTakesNoInputs(t *testing.T) { testCollector(t, 40) }

func TestSoakGarbageCollectorTakesNoInputs(t *testing.T) {
	onlyInSoak(t)
	testCollector(t, 200)
}

// collectAlways makes a builder's daemon collect garbage whenever it can. It does so
// when a thirty-third of its disk has been used since the last time, so the disk is
// small.
var collectAlways = []string{"min-free = 1099511627776", "max-free = 1099511627776", "min-free-check-interval = 0"}

const (
	collectorDisk = 600 << 20
	collectorLoop = "while :; do nix-store --gc >/dev/null 2>&1; echo collected >>/tmp/collections; sleep 0.05; done"
)

func testCollector(t *testing.T, builds int) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	const slots = 4
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "b1", Kind: testbed.Builder, MaxJobs: slots, NixConf: collectAlways},
		testbed.HostSpec{Name: "b2", Kind: testbed.Builder, MaxJobs: slots, NixConf: collectAlways, Nix: testbed.Nix226},
		testbed.HostSpec{Name: "c1", Kind: testbed.Client, Keys: []testbed.Key{key}},
		testbed.HostSpec{Name: "c2", Kind: testbed.Client, Keys: []testbed.Key{key}, Nix: testbed.Nix226})
	builders, clients := hosts[:2], hosts[2:]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builders[0], MaxJobs: slots}, {Host: builders[1], MaxJobs: slots}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	for _, b := range builders {
		b.MustShell(t, fmt.Sprintf("mount -o remount,size=%d /nix", collectorDisk))
		startScriptFor(t, longPatience, b, collectorLoop)
	}
	var runs []*running
	for n, client := range clients {
		setMachines(t, client, proxy.Machine(key))
		all := layered(t, client, fmt.Sprintf("c%d-", n+1), builds/len(clients))
		runs = append(runs, startBuildFor(t, longPatience, client, writeExpression(t, client, all...), namesOf(all)))
	}
	for n, r := range runs {
		paths, log := r.mustSucceed(t)
		clients[n].MustShell(t, "nix-store --verify-path "+strings.Join(paths, " "))
		t.Logf("%s was told of %d collections by daemons themselves", clients[n].Name(), strings.Count(log, "running auto-GC"))
	}
	for _, b := range builders {
		collections := strings.Count(b.MustShell(t, "cat /tmp/collections"), "collected")
		t.Logf("%s collected garbage %d times", b.Name(), collections)
		if collections < builds/4 {
			t.Errorf("%s collected garbage %d times in %d builds: little was shown", b.Name(), collections, builds)
		}
	}
	if n := countBuilt(proxy); n != builds {
		t.Errorf("%d builds ran, want %d", n, builds)
	}
}

// layered are builds of which each needs two files of its own, one that all have,
// and the output of an earlier one.
func layered(t *testing.T, client *testbed.Host, prefix string, n int) []testbed.Derivation {
	t.Helper()
	const width, size = 8, 512 << 10
	client.MustShell(t, fmt.Sprintf(
		"set -e; mkdir /root/in; cd /root/in; for f in common $(seq %d); do yes \"%s $f\" | head -c %d >$f; yes \"%[2]s $f more\" | head -c %[3]d >$f.more; done", n, prefix, size))
	all := testbed.Numbered(n, testbed.Derivation{Name: prefix, KeepInputs: true, OutputSize: size})
	for i := range all {
		all[i].Sources = []string{"/root/in/common", fmt.Sprintf("/root/in/%d", i+1), fmt.Sprintf("/root/in/%d.more", i+1)}
		if i >= width {
			all[i].Inputs = []string{all[i-width].Name}
		}
	}
	return all
}

// countBuilt is how many builds ended well by the proxy's log.
func countBuilt(p *world.Proxy) int {
	lines := p.LinesSince(0)
	return len(slices.DeleteFunc(lines, func(l world.Line) bool { return l.Msg != "built" || l.Text("status") != "Built" }))
}
