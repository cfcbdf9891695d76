package fleet

import (
	"testing"
	"time"
)

// Guards against a sample that is not what it is said to be: its bound is what all
// ratios are divided by.
func TestSampleHasTheBoundThatWasAskedFor(t *testing.T) {
	const bound = 3 * time.Minute
	for seed := range uint64(20) {
		trace := Sample(seed, bound)
		if off := trace.Bound() - bound; off > time.Millisecond || off < -time.Millisecond {
			t.Errorf("seed %d: the bound is %v", seed, trace.Bound())
		}
		if len(trace.Machines) != 4 || len(trace.Clients) != 4 || len(trace.Builds) != 150 {
			t.Errorf("seed %d: %d machines, %d clients, %d builds", seed, len(trace.Machines), len(trace.Clients), len(trace.Builds))
		}
		if trace.Wanted() < 2*trace.Distinct() {
			t.Errorf("seed %d: %d builds are wanted and %d are different: clients hardly overlap", seed, trace.Wanted(), trace.Distinct())
		}
	}
}
