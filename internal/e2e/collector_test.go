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

const collectorDisk = 600 << 20

// commonInputs are files that all builds need. Builders get them by other ways, too,
// so that they are there now and then and nobody's.
const commonInputs = 6

// makeCommon makes the same files on every host.
var makeCommon = fmt.Sprintf("mkdir -p /root/in; cd /root/in; for n in $(seq %d); do yes common$n | head -c 100000 >common$n; done", commonInputs)

// collectorLoop collects all the time, and brings the common inputs in between.
const collectorLoop = `cd /root/in; while :; do
	nix-store --add common* >/dev/null 2>&1
	sleep 0.1
	nix-store --gc >/dev/null 2>&1
	echo collected >>/tmp/collections
done`

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
		b.MustShell(t, fmt.Sprintf("set -e; mount -o remount,size=%d /nix; %s", collectorDisk, makeCommon))
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
		if collections < builds/8 {
			t.Errorf("%s collected garbage %d times in %d builds: little was shown", b.Name(), collections, builds)
		}
	}
	if n := countBuilt(proxy); n != builds {
		t.Errorf("%d builds ran, want %d", n, builds)
	}
}

// layered are builds of which each needs the common inputs, a large file of its own
// that is sent while those lie there, and the output of an earlier one. It looks for
// all of them once more at its end.
func layered(t *testing.T, client *testbed.Host, prefix string, n int) []testbed.Derivation {
	t.Helper()
	const width, own, output = 8, 1 << 20, 256 << 10
	client.MustShell(t, fmt.Sprintf("set -e; %s; for n in $(seq %d); do yes %s$n | head -c %d >$n; done", makeCommon, n, prefix, own))
	all := testbed.Numbered(n, testbed.Derivation{Name: prefix, KeepInputs: true, OutputSize: output,
		Script: `sleep 0.5; for i in $inputs; do test -e $i || { echo "$i was taken away" >&2; exit 1; }; done`})
	for i := range all {
		all[i].Sources = []string{fmt.Sprintf("/root/in/%d", i+1)}
		for n := range commonInputs {
			all[i].Sources = append(all[i].Sources, fmt.Sprintf("/root/in/common%d", n+1))
		}
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
