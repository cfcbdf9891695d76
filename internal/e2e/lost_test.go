package e2e

import (
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// As long as the client has no reply, a lost builder means another builder; and
// a builder that does not trust us gets nothing. Guards against failures that
// the user has to repeat by hand.
func TestBrokenBuilders(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "b1", Kind: testbed.Builder, MaxJobs: 1},
		testbed.HostSpec{Name: "b2", Kind: testbed.Builder, MaxJobs: 1},
		testbed.HostSpec{Name: "wary", Kind: testbed.Builder, MaxJobs: 1, System: otherSystem},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	pair, wary, client := hosts[:2], hosts[2], hosts[3]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{
			{Host: pair[0]}, {Host: pair[1]},
			{Host: wary, Account: testbed.GuestAccount, Systems: []string{otherSystem}},
		},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	t.Run("not trusted", func(t *testing.T) { testNotTrusted(t, proxy, client, wary) })
	t.Run("lost in the middle of a build", func(t *testing.T) { testLostBuilder(t, proxy, client, pair) })
}

func testNotTrusted(t *testing.T, proxy *world.Proxy, client, wary *testbed.Host) {
	file := writeExpression(t, client, testbed.Derivation{Name: "unwanted", System: otherSystem})
	log := startBuild(t, client, file, []string{"unwanted"}).mustFail(t)
	if !lineWith(log, testbed.GuestAccount, "wary", "trusted-users") {
		t.Errorf("no line says which account must be in trusted-users of which builder:\n%s", log)
	}
	if store := wary.MustShell(t, "ls /nix/store"); strings.Contains(store, "unwanted") {
		t.Errorf("the builder that does not trust us got the build: %s", store)
	}
	if got := builtOn(proxy, "unwanted"); len(got) != 0 {
		t.Errorf("it was built on %q", got)
	}
}

func testLostBuilder(t *testing.T, proxy *world.Proxy, client *testbed.Host, pair []*testbed.Host) {
	moved := gated("moved")
	run, _ := startWatched(t, client, moved)
	var lost, other *testbed.Host
	eventually(t, "the build runs", patience, func() bool {
		for i, b := range pair {
			if runningBuilds(t, b) == 1 {
				lost, other = b, pair[1-i]
			}
		}
		return lost != nil
	})
	openGate(t, other, moved.Name)
	if err := lost.Stop(); err != nil {
		t.Fatal(err)
	}
	run.mustSucceed(t)
	log := client.MustShell(t, "cat /root/e2e/*.log")
	if !lineWith(log, "builder '"+lost.Name()+"'") || !lineWith(log, "building", "on '"+other.Name()+"'") {
		t.Errorf("the log does not say that %s was lost and %s built:\n%s", lost.Name(), other.Name(), log)
	}
	if got := builtOn(proxy, moved.Name); len(got) != 1 || got[0] != other.Name() {
		t.Errorf("it was built on %q, want %s", got, other.Name())
	}
	if n := timesRun(t, other, moved.Name); n != 1 {
		t.Errorf("it ran %d times on %s", n, other.Name())
	}
}
