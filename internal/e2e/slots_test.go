package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// stamped is a build that leaves the times of its beginning and end on the
// builder.
func stamped(name string, takes time.Duration) testbed.Derivation {
	return testbed.Derivation{Name: name, Script: fmt.Sprintf(
		"date +%%s.%%N >/tmp/began.%[1]s\nsleep %.3[2]f\ndate +%%s.%%N >/tmp/ended.%[1]s", name, takes.Seconds())}
}

// stamp reads one of the times of a stamped build.
func stamp(t *testing.T, builder *testbed.Host, which, name string) time.Time {
	t.Helper()
	return parseStamp(t, builder.MustShell(t, "cat /tmp/"+which+"."+name))
}

func parseStamp(t *testing.T, text string) time.Time {
	t.Helper()
	seconds, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.UnixMicro(int64(seconds * 1e6))
}

// Guards against slots that are counted per client, as Nix does it, and against
// builds that are forgotten in the queue.
func TestNoBuilderGetsMoreThanItsSlots(t *testing.T) { testSlots(t, 12, 300*time.Millisecond) }

func TestSoakNoBuilderGetsMoreThanItsSlots(t *testing.T) {
	onlyInSoak(t)
	testSlots(t, 60, 500*time.Millisecond)
}

func testSlots(t *testing.T, each int, takes time.Duration) {
	const clients, slots = 4, 2
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	specs := []testbed.HostSpec{
		{Name: "b1", Kind: testbed.Builder, MaxJobs: slots},
		{Name: "b2", Kind: testbed.Builder, MaxJobs: slots, Nix: testbed.Nix226},
	}
	for n := range clients {
		specs = append(specs, testbed.HostSpec{Name: fmt.Sprintf("c%d", n+1), Kind: testbed.Client,
			Nix: versions[n%len(versions)], Keys: []testbed.Key{key}})
	}
	hosts := bed.MustStart(t, specs...)
	builders, people := hosts[:2], hosts[2:]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builders[0], MaxJobs: slots}, {Host: builders[1], MaxJobs: slots}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	peaks := watchBuilds(t, builders)
	var runs []*running
	for n, client := range people {
		setMachines(t, client, proxy.Machine(key))
		var all []testbed.Derivation
		var names []string
		for i := range each {
			all = append(all, stamped(fmt.Sprintf("s%dx%d", n+1, i+1), takes))
			names = append(names, all[i].Name)
		}
		runs = append(runs, startBuildFor(t, 15*time.Minute, client, writeExpression(t, client, all...), names))
	}
	for _, r := range runs {
		if paths, _ := r.mustSucceed(t); len(paths) != each {
			t.Errorf("%s has %d outputs, want %d", r.client.Name(), len(paths), each)
		}
	}
	total := 0
	for i, peak := range peaks() {
		peakByStamps, ran := overlap(t, builders[i])
		t.Logf("%s: %d builds, at most %d at once by its processes, %d by its clock", builders[i].Name(), ran, peak, peakByStamps)
		if peak > slots || peakByStamps > slots {
			t.Errorf("%s had %d builds at once (%d by its clock), want at most %d", builders[i].Name(), peak, peakByStamps, slots)
		}
		if peak == 0 {
			t.Errorf("no build was ever seen on %s", builders[i].Name())
		}
		total += ran
	}
	if total != clients*each {
		t.Errorf("%d builds ran, want each of %d once", total, clients*each)
	}
}

// watchBuilds counts the running builds of each builder over and over; peaks
// ends that and returns the most that were seen at once.
func watchBuilds(t *testing.T, builders []*testbed.Host) (peaks func() []int) {
	const interval = 20 * time.Millisecond
	stop := make(chan struct{})
	most := make([]int, len(builders))
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			for i, b := range builders {
				if running, err := b.RunningBuilds(); err == nil {
					most[i] = max(most[i], len(running))
				}
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop); watching.Wait() })
	t.Cleanup(end)
	return func() []int { end(); return most }
}

// overlap tells from the times that builds left behind how many ran, and how
// many at the same moment.
func overlap(t *testing.T, builder *testbed.Host) (peak, ran int) {
	t.Helper()
	type edge struct {
		at    time.Time
		delta int
	}
	var edges []edge
	for _, which := range []string{"began", "ended"} {
		delta := map[string]int{"began": 1, "ended": -1}[which]
		for text := range strings.FieldsSeq(builder.MustShell(t, "cat /tmp/"+which+".* 2>/dev/null || true")) {
			edges = append(edges, edge{parseStamp(t, text), delta})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
	now := 0
	for _, e := range edges {
		now += e.delta
		peak = max(peak, now)
	}
	return peak, len(edges) / 2
}

// A client that fetches slowly holds no slot. Guards against slots that are
// freed when the client has its outputs instead of when the builder has replied.
func TestSlowClientHoldsNoSlot(t *testing.T) {
	const size, line = 200 << 20, 1 << 20
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 1},
		testbed.HostSpec{Name: "slow", Kind: testbed.Client, Keys: []testbed.Key{key}},
		testbed.HostSpec{Name: "quick", Kind: testbed.Client, Keys: []testbed.Key{key}})
	builder, slow, quick := hosts[0], hosts[1], hosts[2]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builder, MaxJobs: 1}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	if _, err := slow.Relay(testbed.RelaySpec{Port: 22, Target: "proxy:22", BytesPerSecond: line}); err != nil {
		t.Fatal(err)
	}
	throttled := proxy.Machine(key)
	throttled.Store, throttled.HostKey = "ssh-ng://slow", hostKeyField(proxy)
	setMachines(t, slow, throttled)
	setMachines(t, quick, proxy.Machine(key))

	large := stamped("large", 4*time.Second)
	large.OutputSize, large.Random = size, true
	first := startBuild(t, slow, writeExpression(t, slow, large), []string{large.Name})
	awaitBuilds(t, builder, 1, patience)
	mark := proxy.Mark()
	second := startBuild(t, quick, writeExpression(t, quick, stamped("next", 0)), []string{"next"})
	waitLine(t, proxy, mark, world.Message("ssh login"))

	_, log := second.mustSucceed(t)
	wantText(t, "the log of the build that waited", log, "wait")
	built := waitLine(t, proxy, 0, world.Message("built", "drv", "-large.drv"))
	if gap := stamp(t, builder, "began", "next").Sub(built.Time); gap < 0 || gap > time.Second {
		t.Errorf("the next build began %v after the first one's end, want within a second", gap)
	} else {
		t.Logf("the next build began %v after the first one's end", gap)
	}
	select {
	case <-first.done:
		t.Errorf("the slow client has its output after %v: nothing was shown", first.took)
	default:
	}
	first.kill()
}
