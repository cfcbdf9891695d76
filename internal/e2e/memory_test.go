package e2e

import (
	"fmt"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// The proxy's memory does not depend on what goes through it. Guards against a
// NAR, or a part of it that grows with it, being held in memory.
func TestLargePathsNeedNoMemory(t *testing.T) { testLargePath(t, 256<<20) }

func TestSoakLargePathsNeedNoMemory(t *testing.T) {
	onlyInSoak(t)
	testLargePath(t, 4<<30)
}

// testLargePath has a path of some size uploaded, sent to a builder, built from,
// and fetched.
func testLargePath(t *testing.T, size int64) {
	const limit = 100 << 20
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	disk := []string{"/nix", "/root"}
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 1, OnDisk: disk[:1]},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, OnDisk: disk})
	client := hosts[1]
	if _, err := client.PlaceKey(t.Context(), "root", key); err != nil {
		t.Fatal(err)
	}
	proxy := startProxy(t, bed, world.ProxySpec{
		StateOnDisk: true,
		Builders:    []world.Builder{{Host: hosts[0]}},
		Principals:  []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	client.MustShell(t, fmt.Sprintf("yes a large input | head -c %d >/root/large", size))
	file := writeExpression(t, client, testbed.Derivation{Name: "large", Sources: []string{"/root/large"},
		Script: `for i in $inputs; do cat $i > $out; done; echo more >> $out; exit 0`})

	peak := proxy.PeakRssAnon()
	run := startBuildFor(t, 20*time.Minute, client, file, []string{"large"})
	paths, _ := run.mustSucceed(t)
	most := peak()
	t.Logf("%d MiB in and out took %v; RssAnon was at most %d MiB", size>>20, run.took, most>>20)
	if most == 0 || most > limit {
		t.Errorf("RssAnon was %d MiB, want at most %d", most>>20, limit>>20)
	}
	client.MustShell(t, "nix-store --verify-path "+paths[0])
	got := client.MustShell(t, "stat -c %s "+paths[0])
	if want := fmt.Sprintln(size + int64(len("more\n"))); got != want {
		t.Errorf("the output has %s bytes, want %s", got, want)
	}
}
