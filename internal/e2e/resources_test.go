package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A lodge has two builders of four slots, of which one can do benchmarks and has two
// virtual machines.
type lodge struct {
	proxy   *world.Proxy
	builder *testbed.Host
	client  *testbed.Host
}

// lodgeScheduling is what the NixOS wiki means by its words, in the policy's.
const lodgeScheduling = "scheduling: {alone: [benchmark], needs: [{feature: kvm, resources: {kvm: 1}}]}\n"

func startLodge(t *testing.T) *lodge {
	t.Helper()
	const slots = 4
	features := []string{"benchmark", "kvm"}
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "able", Kind: testbed.Builder, MaxJobs: slots, Features: features},
		testbed.HostSpec{Name: "plain", Kind: testbed.Builder, MaxJobs: slots},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	l := &lodge{builder: hosts[0], client: hosts[2]}
	l.proxy = startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{
			{Host: hosts[0], MaxJobs: slots, Features: features, Extra: []string{"resources: {kvm: 2}"}},
			{Host: hosts[1], MaxJobs: slots},
		},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Extra:      lodgeScheduling,
	})
	setMachines(t, l.client, l.proxy.Machine(key))
	return l
}

// A benchmark runs with no other build on its builder, though slots are free there,
// and both it and the others have their turn. Guards against numbers that tell what
// the neighbours did.
func TestS20BenchmarkRunsAlone(t *testing.T) {
	l := startLodge(t)
	const takes = 500 * time.Millisecond
	all := testbed.Numbered(12, testbed.Derivation{Name: "usual", Work: takes})
	for n := range 3 {
		d := testbed.Derivation{Name: fmt.Sprintf("benchmark%d", n+1), Work: takes, RequiredFeatures: []string{"benchmark"}}
		all = slices.Insert(all, 4*n+2, d)
	}
	records := l.run(t, all)
	benchmarks := 0
	for _, a := range records {
		if a.Name[0] != 'b' {
			continue
		}
		benchmarks++
		for _, b := range records {
			if b.Name != a.Name && b.Arrived.Before(a.Done) && b.Done.After(a.Arrived) {
				t.Errorf("%s (%v to %v) ran beside %s (%v to %v)", b.Name, b.Arrived, b.Done, a.Name, a.Arrived, a.Done)
			}
		}
	}
	if benchmarks != 3 {
		t.Errorf("%d benchmarks ran on the builder that can do them, want 3", benchmarks)
	}
	t.Logf("%d other builds ran on the same builder", len(records)-benchmarks)
}

// A builder with two of something has never more than two builds that need one, and
// others use its further slots. Guards against slots that stand for all that a
// builder can run out of.
func TestResourcesAreCounted(t *testing.T) {
	l := startLodge(t)
	const virtual, enough = 8, 2
	all := testbed.Numbered(virtual, testbed.Derivation{Name: "virtual", Work: time.Second, RequiredFeatures: []string{"kvm"}})
	all = append(all, testbed.Numbered(24, testbed.Derivation{Name: "usual", Work: time.Second})...)
	records := l.run(t, all)
	peak := testbed.PeakBuilds(records)
	records = slices.DeleteFunc(records, func(r testbed.BuildRecord) bool { return r.Name[0] != 'v' })
	if got := testbed.PeakBuilds(records); got != enough || len(records) != virtual {
		t.Errorf("%d builds that need kvm ran, at most %d at once; want %d and %d", len(records), got, virtual, enough)
	}
	if peak <= enough {
		t.Errorf("at most %d builds ran at once on a builder with more slots: it was not used", peak)
	}
}

// run builds derivations and returns what ran on the builder that can do all of them.
func (l *lodge) run(t *testing.T, all []testbed.Derivation) []testbed.BuildRecord {
	t.Helper()
	startBuild(t, l.client, writeExpression(t, l.client, all...), namesOf(all)).mustSucceed(t)
	records, err := l.builder.BuildRecords(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return records
}
