package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A principal that floods the proxy is in nobody's way: another one that asks for a
// build now and then waits no longer than a build takes. Guards against one queue
// for all, in which the last comer waits for everybody.
func TestFloodOfOneIsNoWaitForAnother(t *testing.T) {
	testFlood(t, flood{builds: 60, takes: 3 * time.Second, asks: 10, every: 2 * time.Second})
}

func TestSoakFloodOfOneIsNoWaitForAnother(t *testing.T) {
	onlyInSoak(t)
	testFlood(t, flood{builds: 500, takes: 4 * time.Second, asks: 40, every: 10 * time.Second})
}

// A flood is what one principal asks for at once, and what another does meanwhile.
type flood struct {
	builds int
	takes  time.Duration
	asks   int
	every  time.Duration
}

func testFlood(t *testing.T, f flood) {
	const slots = 4
	bed := testbed.ForTest(t)
	loud, calm := bed.UserKey("loud"), bed.UserKey("calm")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: slots},
		testbed.HostSpec{Name: "loud", Kind: testbed.Client, Keys: []testbed.Key{loud}},
		testbed.HostSpec{Name: "calm", Kind: testbed.Client, Keys: []testbed.Key{calm}})
	builder, flooder, asker := hosts[0], hosts[1], hosts[2]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{{Host: builder, MaxJobs: slots}},
		Principals: []world.Principal{
			{Name: "loud", Keys: []testbed.Key{loud}},
			{Name: "calm", Keys: []testbed.Key{calm}},
		},
	})
	machine := proxy.Machine(loud)
	machine.MaxJobs = f.builds
	setMachines(t, flooder, machine)
	setMachines(t, asker, proxy.Machine(calm))
	idle := f.ask(t, asker, builder, "idle", 3)

	all := testbed.Numbered(f.builds, testbed.Derivation{Name: "flood", Sleep: f.takes})
	run := startBuildFor(t, longPatience, flooder, writeExpression(t, flooder, all...), namesOf(all))
	awaitBuilds(t, builder, slots, patience)
	waits := f.ask(t, asker, builder, "calm", f.asks)
	select {
	case <-run.done:
		t.Errorf("the flood was over after %v: nothing was shown", run.took)
	default:
	}
	// What it takes to ask is no wait for others.
	wait := median(waits) - median(idle)
	t.Logf("builds of %v began a median of %v after they were asked for (%v to %v), %v when nobody else was there",
		f.takes, median(waits), slices.Min(waits), slices.Max(waits), median(idle))
	if wait >= f.takes {
		t.Errorf("the median wait was %v, want less than a build takes, %v", wait, f.takes)
	}
	if soak() {
		run.mustSucceed(t)
	}
}

// ask has builds begun in even intervals, and returns for each how long it took from
// the client's question to the beginning.
func (f flood) ask(t *testing.T, client, builder *testbed.Host, name string, n int) (waits []time.Duration) {
	t.Helper()
	var runs []*running
	var asked []time.Time
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for i := range n {
		d := stamped(fmt.Sprintf("%s%d", name, i), f.takes)
		file := writeExpression(t, client, d)
		asked = append(asked, time.Now())
		runs = append(runs, startBuildFor(t, longPatience, client, file, []string{d.Name}))
		<-tick.C
	}
	for i, r := range runs {
		r.mustSucceed(t)
		waits = append(waits, stamp(t, builder, "began", fmt.Sprintf("%s%d", name, i)).Sub(asked[i]))
	}
	return waits
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
