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

// A yard is four clients, with every version of Nix among them, and two builders
// that have four slots each. It is common to the tests of who waits for whom.
type yard struct {
	bed      *testbed.Bed
	proxy    *world.Proxy
	builders []*testbed.Host
	clients  []*testbed.Host
	key      testbed.Key
	modest   testbed.Key // of a principal that may run three builds at once
}

const (
	yardSlots    = 4
	modestBuilds = 3
	// quickSpeed is how much faster the first builder works, when it works for
	// real; the second one has speed 1.
	quickSpeed = 2
)

var commonYard common[*yard]

func startYard(t *testing.T) *yard {
	t.Helper()
	return commonYard.get(t, func(t *testing.T, bed *testbed.Bed) (*yard, *world.Proxy) {
		y := &yard{bed: bed, key: bed.UserKey("alice"), modest: bed.UserKey("modest")}
		specs := []testbed.HostSpec{
			{Name: "quick", Kind: testbed.Builder, MaxJobs: yardSlots, Speed: quickSpeed},
			{Name: "slow", Kind: testbed.Builder, MaxJobs: yardSlots, Nix: testbed.Nix226},
		}
		for n, v := range []string{testbed.Nix234, testbed.Nix28, testbed.Nix226, testbed.Nix234} {
			specs = append(specs, testbed.HostSpec{Name: fmt.Sprintf("c%d", n+1), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{y.key, y.modest}})
		}
		hosts := bed.MustStart(t, specs...)
		y.builders, y.clients = hosts[:2], hosts[2:]
		y.proxy = startCommonProxy(t, bed, world.ProxySpec{
			Builders: []world.Builder{{Host: hosts[0], MaxJobs: yardSlots}, {Host: hosts[1], MaxJobs: yardSlots}},
			Principals: []world.Principal{
				{Name: "alice", Keys: []testbed.Key{y.key}},
				{Name: "modest", Keys: []testbed.Key{y.modest}, MaxJobs: modestBuilds},
			},
		})
		return y, y.proxy
	})
}

// A client that sends fifty builds at once, with others beside it, overloads no
// builder; what has no slot waits and says so, and all are built. Guards against
// slots that are counted per client, as Nix does it, and against builds that are
// forgotten in the queue.
func TestS16NoBuilderGetsMoreThanItsSlots(t *testing.T) {
	y := startYard(t)
	t.Run("fifty at once", func(t *testing.T) { y.testSlots(t, "s", 50, 6, 2*time.Second) })
	t.Run("a key with a limit of its own", y.testModest)
}

func TestSoakS16NoBuilderGetsMoreThanItsSlots(t *testing.T) {
	onlyInSoak(t)
	startYard(t).testSlots(t, "long", 100, 100, 1500*time.Millisecond)
}

// testSlots has the first client send more builds than each of the others.
func (y *yard) testSlots(t *testing.T, name string, first, each int, takes time.Duration) {
	peaks := watchBuilds(t, y.builders)
	var runs []*running
	total := 0
	for n, client := range y.clients {
		machine := y.proxy.Machine(y.key)
		count := each
		if n == 0 {
			count, machine.MaxJobs = first, first
		}
		setMachines(t, client, machine)
		var all []testbed.Derivation
		for i := range count {
			all = append(all, stamped(fmt.Sprintf("%s%dx%d", name, n+1, i+1), takes))
		}
		runs = append(runs, startBuildFor(t, 15*time.Minute, client, writeExpression(t, client, all...), namesOf(all)))
		total += count
	}
	for n, r := range runs {
		_, log := r.mustSucceed(t)
		if n == 0 {
			wantText(t, "the log of the client with many builds", log, "waiting: ")
		}
	}
	for i, peak := range peaks() {
		peakByStamps, ran := overlap(t, y.builders[i])
		t.Logf("%s: %d builds, at most %d at once by its processes, %d by its clock", y.builders[i].Name(), ran, peak, peakByStamps)
		if peak > yardSlots || peakByStamps > yardSlots {
			t.Errorf("%s had %d builds at once (%d by its clock), want at most %d", y.builders[i].Name(), peak, peakByStamps, yardSlots)
		}
		if peak < yardSlots {
			t.Errorf("%s never had all its slots taken: %d", y.builders[i].Name(), peak)
		}
		total -= ran
	}
	if total != 0 {
		t.Errorf("%d builds more were asked for than ran", total)
	}
}

// testModest guards against one key that takes all slots although it may not.
func (y *yard) testModest(t *testing.T) {
	client := y.clients[0]
	setMachines(t, client, y.proxy.Machine(y.modest))
	var all []testbed.Derivation
	for n := range 9 {
		all = append(all, stamped(fmt.Sprintf("modest%d", n+1), 1500*time.Millisecond))
	}
	_, log := startBuild(t, client, writeExpression(t, client, all...), namesOf(all)).mustSucceed(t)
	wantText(t, "the client's log", log, fmt.Sprintf("modest runs %d of at most %d builds", modestBuilds, modestBuilds))
	if peak, ran := overlap(t, y.builders...); peak != modestBuilds || ran != len(all) {
		t.Errorf("%d builds ran, at most %d at once; want %d and %d", ran, peak, len(all), modestBuilds)
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

// overlap tells from the times that builds left on builders how many ran, and how
// many at the same moment. The times are gone then.
func overlap(t *testing.T, builders ...*testbed.Host) (peak, ran int) {
	t.Helper()
	type edge struct {
		at    time.Time
		delta int
	}
	var edges []edge
	for _, builder := range builders {
		for which, delta := range map[string]int{"began": 1, "ended": -1} {
			stamps := builder.MustShell(t, "cat /tmp/"+which+".* 2>/dev/null; rm -f /tmp/"+which+".*")
			for text := range strings.FieldsSeq(stamps) {
				edges = append(edges, edge{parseStamp(t, text), delta})
			}
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

// A builder of twice the speed gets two thirds of equal builds. Guards against
// speed factors that decide where the first build goes and nothing more.
func TestS17SpeedFactorSharesTheWork(t *testing.T) {
	y := startYard(t)
	withPolicy(t, y.proxy, func(spec *world.ProxySpec) { spec.Builders[0].SpeedFactor = quickSpeed })
	y.wantShares(t, y.share(t, "shared", 18))
}

// So it does where the policy has it the wrong way round, after some builds: speed is
// learned. Guards against a fleet that is as good as the guesses of who wrote it down.
func TestS17WrongSpeedFactorIsFoundOut(t *testing.T) {
	y := startYard(t)
	withPolicy(t, y.proxy, func(spec *world.ProxySpec) { spec.Builders[1].SpeedFactor = quickSpeed })
	first := y.share(t, "mistaken", 12)
	t.Logf("at first the quick builder ran %d builds and the slow one %d", first["quick"], first["slow"])
	y.wantShares(t, y.share(t, "mistaken", 18))
}

// share has two clients ask for equal builds, each for so many, and returns how many
// each builder ran.
func (y *yard) share(t *testing.T, name string, each int) (ran map[string]int) {
	t.Helper()
	const clients = 2
	ran = map[string]int{}
	for _, b := range y.builders {
		ran[b.Name()] = -len(y.records(t, b))
	}
	var runs []*running
	for _, client := range y.clients[:clients] {
		setMachines(t, client, y.proxy.Machine(y.key))
		// Equal builds are those of one name, in whatever version.
		all := testbed.Numbered(each, testbed.Derivation{Name: fmt.Sprintf("%s-%d_", name, expressions.Add(1)), Work: 3 * time.Second})
		runs = append(runs, startBuild(t, client, writeExpression(t, client, all...), namesOf(all)))
	}
	for _, r := range runs {
		r.mustSucceed(t)
	}
	for _, b := range y.builders {
		ran[b.Name()] += len(y.records(t, b))
	}
	if sum := ran["quick"] + ran["slow"]; sum != each*clients {
		t.Fatalf("%d builds ran, want %d", sum, each*clients)
	}
	return ran
}

// records are the builds that ended on a builder, none of which may have waited there.
func (y *yard) records(t *testing.T, b *testbed.Host) []testbed.BuildRecord {
	t.Helper()
	records, err := b.BuildRecords(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if waited := r.Started.Sub(r.Arrived); waited > time.Second {
			t.Errorf("%s waited %v for a slot of %s: it was overloaded", r.Name, waited, b.Name())
		}
	}
	return records
}

// wantShares wants of each builder what its real speed is worth.
func (y *yard) wantShares(t *testing.T, ran map[string]int) {
	t.Helper()
	const tolerance = 0.15
	total := ran["quick"] + ran["slow"]
	want := float64(total) * quickSpeed / (quickSpeed + 1.0)
	t.Logf("the quick builder ran %d of %d, its share is %.1f", ran["quick"], total, want)
	if off := float64(ran["quick"])/want - 1; off > tolerance || off < -tolerance {
		t.Errorf("the quick builder ran %d of %d, want %.1f ± %.0f %%", ran["quick"], total, want, 100*tolerance)
	}
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
