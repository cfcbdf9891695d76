package simulate

import (
	"math"
	"reflect"
	"slices"
	"testing"
	"time"
)

// Equal seeds are equal traces with equal results, or nothing that is said of a
// seed could be looked at again.
func TestASeedGivesTheSameEveryTime(t *testing.T) {
	shape := Shape{Derivations: 300, Clients: 3}
	a, b := Synthetic(7, shape), Synthetic(7, shape)
	if !reflect.DeepEqual(a, b) {
		t.Fatal("two traces of one seed differ")
	}
	first, err := Compare(a, Measured, 2)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Compare(b, Measured, 2)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(first, again) {
		t.Errorf("two runs of one seed differ:\n%v\n%v", first, again)
	}
	if other := Synthetic(8, shape); reflect.DeepEqual(a.Builds, other.Builds) {
		t.Error("two seeds give one trace")
	}
}

// The synthetic trace is what it is said to be: 2,974 builds wanted, 881 of them
// distinct, times and sizes as spread as real ones.
func TestTheSyntheticTraceIsAsDescribed(t *testing.T) {
	const traces = 40
	var wanted, distinct, big, known, builds float64
	var work []time.Duration
	for seed := range uint64(traces) {
		trace := Synthetic(seed, Shape{})
		wanted += float64(trace.Wanted()) / traces
		distinct += float64(trace.Distinct()) / traces
		for _, b := range trace.Builds {
			builds++
			if b.Estimate > 0 {
				known++
			}
			if len(b.Features) > 0 {
				big++
			} else {
				work = append(work, b.Work)
			}
		}
	}
	slices.Sort(work)
	within(t, "builds wanted", wanted, 2974, 0.05)
	within(t, "distinct builds", distinct, 881, 0.05)
	within(t, "median seconds", work[len(work)/2].Seconds(), medianWork, 0.03)
	within(t, "seconds of the 99th percentile", work[len(work)*99/100].Seconds(), 940, 0.1)
	within(t, "share of big-parallel", big/builds, bigShare, 0.1)
	within(t, "share of known names", known/builds, knownShare, 0.02)
	if longest := work[len(work)-1]; longest > longestWork {
		t.Errorf("a build takes %v", longest)
	}
}

func within(t *testing.T, what string, got, want, share float64) {
	t.Helper()
	if math.Abs(got-want) > share*want {
		t.Errorf("%s: %.4g, expected %.4g", what, got, want)
	}
}
