package e2e

import (
	"slices"
	"testing"
	"time"

	"nixbastion/internal/fleet"
	"nixbastion/internal/simulate"
	"nixbastion/internal/testbed"
)

// Builds of real clients on unequal builders end near the time that no placement can
// beat, and well before they do without the proxy. The limits leave room for what else
// the machine does: `go run ./internal/bench fleet` has those of the project. Guards
// against a placement that is good in the simulator alone.
func TestSoakBuildsEndNearTheBound(t *testing.T) {
	onlyInSoak(t)
	t.Run("many that need nobody", func(t *testing.T) {
		testPlacement(t, fleet.Mixed(0), 1.3, map[string]float64{fleet.Direct: 1, fleet.HAProxy: 1, fleet.Hub: 0.7})
	})
	t.Run("those that need each other", func(t *testing.T) {
		testPlacement(t, fleet.Sample(1, 2*time.Minute), 1.5, map[string]float64{fleet.Direct: 0.85, fleet.Hub: 0.9})
	})
}

// testPlacement carries a trace through real hosts: the proxy's makespan may be so
// often the bound, and so often that of other ways.
func testPlacement(t *testing.T, trace *simulate.Trace, perBound float64, perWay map[string]float64) {
	line := counted(t)
	ways := []string{fleet.Proxy}
	for _, way := range fleet.Ways {
		if _, compared := perWay[way]; compared {
			ways = append(ways, way)
		}
	}
	f, err := fleet.Open(t.Context(), testbed.ForTest(t), trace, ways...)
	if err != nil {
		t.Fatal(err)
	}
	took := map[string]time.Duration{}
	for _, way := range slices.Backward(ways) {
		r, err := f.Run(t.Context(), way)
		if err != nil {
			t.Fatal(err)
		}
		took[way] = r.Makespan
		line.note("%s %.2f", way, r.Ratio())
		t.Logf("%s: %v, %.2f times the bound, %d builds, which waited %v on their builders; the machine was busy by %.0f %%",
			way, r.Makespan.Round(100*time.Millisecond), r.Ratio(), r.Built, r.Waited.Round(100*time.Millisecond), 100*r.Busy)
		if way == fleet.Proxy && r.Built != trace.Distinct() {
			t.Errorf("%d builds ran, want each of %d once", r.Built, trace.Distinct())
		}
	}
	if ratio := took[fleet.Proxy].Seconds() / trace.Bound().Seconds(); ratio > perBound {
		t.Errorf("it took %.2f times the bound, want at most %.2f", ratio, perBound)
	}
	for way, limit := range perWay {
		if ratio := took[fleet.Proxy].Seconds() / took[way].Seconds(); ratio > limit {
			t.Errorf("it took %.2f times as long as %s, want at most %.2f", ratio, way, limit)
		}
	}
}
