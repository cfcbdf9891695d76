package simulate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func host(name string, slots int, speed float64) Machine {
	return Machine{Name: name, Systems: map[string]float64{linux: 1}, Slots: slots, Speed: speed, Link: mega}
}

// fan is a trace of builds without dependencies that each of some clients wants at
// once, in the order given.
func fan(machines []Machine, clients int, work ...time.Duration) *Trace {
	t := &Trace{Machines: machines}
	var asks []Ask
	for i, w := range work {
		t.Builds = append(t.Builds, Build{Name: fmt.Sprintf("build%d-1", i), System: linux, Work: w})
		asks = append(asks, Ask{Build: i})
	}
	for i := range clients {
		t.Clients = append(t.Clients, Client{Name: fmt.Sprintf("client-%d", i), Asks: asks})
	}
	return t
}

func mustRun(t *testing.T, policy string, trace *Trace, costs Costs) Result {
	t.Helper()
	res, err := runPolicy(policy, trace, costs)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func repeat(n int, d time.Duration) []time.Duration { return slices.Repeat([]time.Duration{d}, n) }

// Clients that know only their own locks all take the fast machine, and the third
// waits there while the other machine is idle; a hub counts for all of them.
func TestPlainClientsOverloadAFastMachine(t *testing.T) {
	trace := fan([]Machine{host("fast", 2, 4), host("slow", 2, 3)}, 0, repeat(3, time.Minute)...)
	for i := range trace.Builds {
		trace.Clients = append(trace.Clients, Client{Asks: []Ask{{Build: i}}})
	}
	if res := mustRun(t, Plain, trace, Costs{}); res.Makespan != 30*time.Second {
		t.Errorf("three builds took %v, expected two turns of 15 s on the fast machine", res.Makespan)
	}
	if res := mustRun(t, Hub, trace, Costs{}); res.Makespan != 20*time.Second {
		t.Errorf("behind a hub they took %v, expected 20 s on the slow one", res.Makespan)
	}
}

// A machine runs no more than its slots; what clients send beyond that waits there
// in order of arrival.
func TestWhatIsTooMuchWaitsOnTheMachine(t *testing.T) {
	trace := fan([]Machine{host("one", 2, 1)}, 1, repeat(6, 10*time.Second)...)
	trace.Clients = nil
	for i := range trace.Builds {
		trace.Clients = append(trace.Clients, Client{Name: fmt.Sprint(i), Asks: []Ask{{Build: i}}})
	}
	res := mustRun(t, Plain, trace, Costs{Poll: 5 * time.Second})
	if res.Makespan != 30*time.Second {
		t.Errorf("six builds of 10 s on two slots take %v, expected 30 s", res.Makespan)
	}
	if want := 20 * time.Second; res.Completion != want {
		t.Errorf("the mean client is done after %v, expected %v", res.Completion, want)
	}
}

// A client whose own slots are taken looks again every 5 seconds and not before.
func TestAPostponedBuildWaitsForThePoll(t *testing.T) {
	trace := fan([]Machine{host("one", 1, 1)}, 1, repeat(2, time.Second)...)
	if res := mustRun(t, Plain, trace, Costs{Poll: 5 * time.Second}); res.Makespan != 6*time.Second {
		t.Errorf("two builds of 1 s take %v, expected 5 s until the poll and 1 s", res.Makespan)
	}
}

// The hook connects for one build after another.
func TestAClientConnectsForOneBuildAtATime(t *testing.T) {
	trace := fan([]Machine{host("one", 8, 1)}, 1, repeat(8, time.Second)...)
	if res := mustRun(t, Plain, trace, Costs{Connect: 2 * time.Second}); res.Makespan != 17*time.Second {
		t.Errorf("eight builds with 2 s to connect take %v, expected 17 s", res.Makespan)
	}
}

// What several clients want is built once behind a hub, and once by each of them
// without, unless it reaches the same machine.
func TestOnlyAMiddleBuildsOnce(t *testing.T) {
	machines := []Machine{host("a", 4, 1), host("b", 4, 1), host("c", 4, 1)}
	for policy, built := range map[string]int{Hub: 2, Ours: 2, Clairvoyant: 2, RoundRobin: 6, Plain: 2} {
		trace := fan(machines, 3, time.Minute, time.Hour)
		if res := mustRun(t, policy, trace, Costs{Connect: time.Second, Poll: time.Second}); res.Built != built {
			t.Errorf("%s: %d builds ran, expected %d", policy, res.Built, built)
		}
	}
}

// An input travels to a machine once, over a link that carries one thing after
// another, and the build begins when it is there.
func TestInputsTravelOnceAndTakeTime(t *testing.T) {
	trace := fan([]Machine{host("one", 4, 1)}, 1, repeat(3, 10*time.Second)...)
	for i := range trace.Builds {
		trace.Builds[i].Sources = []Source{{"toolchain", 20 * mega}, {fmt.Sprint(i), 5 * mega}}
	}
	for _, policy := range []string{Plain, Hub, LeastConnections, Ours, Clairvoyant} {
		res := mustRun(t, policy, trace, Costs{})
		if res.Bytes != 35*mega {
			t.Errorf("%s: %d bytes travelled, expected 35 MB", policy, res.Bytes)
		}
		if res.Makespan != 45*time.Second {
			t.Errorf("%s: the last is done after %v, expected 35 s of transfer and 10 s", policy, res.Makespan)
		}
	}
}

// A build waits for its dependencies at the client that wants both.
func TestDependenciesComeFirst(t *testing.T) {
	trace := fan([]Machine{host("one", 4, 2)}, 1, 10*time.Second, 20*time.Second, 30*time.Second)
	trace.Builds[1].Deps = []int{0}
	trace.Builds[2].Deps = []int{0, 1}
	for _, way := range ways {
		if res := mustRun(t, way.name, trace, Costs{}); res.Makespan != 30*time.Second {
			t.Errorf("%s: a chain of 60 s at speed 2 took %v", way.name, res.Makespan)
		}
	}
	if trace.Bound() != 30*time.Second {
		t.Errorf("the bound is %v, expected 30 s", trace.Bound())
	}
}

// Nothing runs where it cannot, and what can run nowhere is refused by name.
func TestBuildsRunOnlyWhereTheyFit(t *testing.T) {
	machines := []Machine{host("usual", 1, 1), host("big", 1, 9)}
	machines[1].Mandatory = []string{bigParallel}
	trace := fan(machines, 1, time.Second, time.Second)
	trace.Builds[1].Features = []string{bigParallel}
	for _, way := range ways {
		r := newRun(trace, Costs{})
		if _, err := r.finish(way.name, way.make(r)); err != nil {
			t.Fatal(err)
		}
		if r.machines[0].built != 1 || r.machines[1].built != 1 {
			t.Errorf("%s: %d and %d builds ran, expected one each", way.name, r.machines[0].built, r.machines[1].built)
		}
	}
	trace.Builds[0].Features = []string{"kvm"}
	if _, err := Compare(trace, Costs{}, 2); err == nil || !strings.Contains(err.Error(), "build0-1") {
		t.Errorf("a build that no machine can run gives %v", err)
	}
}

// The bound counts the work of each set of machines that some builds are limited
// to, and takes the slots and speeds of all of them.
func TestTheBoundKnowsClassesOfMachines(t *testing.T) {
	machines := []Machine{host("usual", 10, 1), host("big", 2, 1.5)}
	machines[1].Mandatory = []string{bigParallel}
	trace := fan(machines, 1, repeat(20, 3*time.Second)...)
	if got := trace.Bound(); got != 6*time.Second {
		t.Errorf("60 s of work on ten slots: bound %v, expected 6 s", got)
	}
	for i := range 8 {
		trace.Builds[i].Features = []string{bigParallel}
	}
	if got := trace.Bound(); got != 8*time.Second {
		t.Errorf("24 s of it on two slots of speed 1.5: bound %v, expected 8 s", got)
	}
}

// What is asked for late bounds the end, alone and with what else is late. Guards
// against a history of days, most of which nothing happened, that seems to be badly
// placed.
func TestTheBoundAsAskedKnowsWhatCameLate(t *testing.T) {
	trace := fan([]Machine{host("one", 2, 1)}, 1, repeat(6, 10*time.Second)...)
	if got := trace.BoundAsAsked(); got != 30*time.Second {
		t.Errorf("all at the start: bound %v, expected 30 s", got)
	}
	asks := trace.Clients[0].Asks
	asks[5].At = time.Minute
	if got := trace.BoundAsAsked(); got != 70*time.Second {
		t.Errorf("one after a minute: bound %v, expected 70 s", got)
	}
	for i := range asks[2:] {
		asks[2+i].At = time.Minute
	}
	if got := trace.BoundAsAsked(); got != 80*time.Second {
		t.Errorf("four after a minute: bound %v, expected 80 s", got)
	}
	trace.Builds[5].Deps = []int{0, 1, 2, 3, 4}
	if got := trace.BoundAsAsked(); got != 80*time.Second {
		t.Errorf("the last needs the others: bound %v, expected 80 s", got)
	}
	if got := trace.Bound(); got != 30*time.Second {
		t.Errorf("the bound without times is %v, expected 30 s", got)
	}
	trace.Clients = append(trace.Clients, Client{Name: "early", Asks: []Ask{{Build: 5}}})
	if got := trace.BoundAsAsked(); got != 80*time.Second {
		t.Errorf("the last was asked for early, but needs late ones: bound %v, expected 80 s", got)
	}
}
