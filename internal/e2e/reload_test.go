package e2e

import (
	"fmt"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Builders come, change and go while builds run, and no build fails or runs twice.
// Guards against a policy that can only be changed at night.
func TestBuildersChangeWhileBuildsRun(t *testing.T) {
	const builds, slots, port = 36, 2, 2222
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	builder := func(name string) testbed.HostSpec {
		return testbed.HostSpec{Name: name, Kind: testbed.Builder, MaxJobs: slots}
	}
	hosts := bed.MustStart(t, builder("b1"), builder("b2"), builder("b3"), testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	builders, client := hosts[:3], hosts[3]
	if _, err := builders[0].Relay(testbed.RelaySpec{Port: port, Target: "b1:22"}); err != nil {
		t.Fatal(err)
	}
	entry := func(i int) world.Builder { return world.Builder{Host: builders[i], MaxJobs: slots} }
	spec := world.ProxySpec{
		Builders:   []world.Builder{entry(0), entry(1), entry(2)},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	}
	elsewhere, roomier := entry(0), entry(1)
	elsewhere.Address = fmt.Sprintf("b1:%d", port)
	roomier.MaxJobs, roomier.SpeedFactor = 2*slots, 3
	variants := [][]world.Builder{
		{entry(0), entry(1)},            // b3 goes
		{entry(0), roomier, entry(2)},   // and comes back, b2 is better
		{elsewhere, roomier},            // b1 is reached in another way
		{entry(2)},                      // only one is left
		{elsewhere, entry(1), entry(2)}, // all are back
		{entry(0), entry(1), entry(2)},  // as at first
	}
	proxy := startProxy(t, bed, spec)
	setMachines(t, client, proxy.Machine(key))
	all := testbed.Numbered(builds, testbed.Derivation{Name: "steady", Work: 1500 * time.Millisecond})
	run := startBuild(t, client, writeExpression(t, client, all...), namesOf(all))
	changes := 0
	for ; !ended(run, time.Second); changes++ {
		spec.Builders = variants[changes%len(variants)]
		if err := proxy.Reload(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	run.mustSucceed(t)
	ran := map[string]int{}
	for _, b := range builders {
		records, err := b.BuildRecords(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			ran[r.Name]++
		}
	}
	t.Logf("the policy was changed %d times while %d builds ran", changes, len(ran))
	if changes < len(variants) {
		t.Errorf("the policy was changed %d times, want %d at least", changes, len(variants))
	}
	for _, d := range all {
		if ran[d.Name] != 1 {
			t.Errorf("%s ran %d times, want once", d.Name, ran[d.Name])
		}
	}
}

// ended waits a moment and reports whether a build has ended.
func ended(r *running, wait time.Duration) bool {
	select {
	case <-r.done:
		return true
	case <-time.After(wait):
		return false
	}
}
