package simulate

import (
	"math"
	"slices"
	"testing"
	"time"
)

// The models of what others do stand beside real hosts: medians of makespans that
// were measured with Nix 2.34.8, OpenSSH 10 and HAProxy. Guards against models that
// flatter the router by being worse than what they stand for.
func TestModelsAgreeWithRealHosts(t *testing.T) {
	if bound := Calibration(0).Bound(); bound != 14*time.Second {
		t.Errorf("the bound is %v, expected 14 s", bound)
	}
	for policy, measured := range map[string]float64{Plain: 19.2, LeastConnections: 16.9, Hub: 26.2} {
		spans, err := Makespans(policy, Calibration, 101, Measured)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(spans)
		median := spans[len(spans)/2].Seconds()
		t.Logf("%s: %.1f s [%.1f .. %.1f], measured %.1f s", policy, median, spans[0].Seconds(), spans[len(spans)-1].Seconds(), measured)
		if math.Abs(median-measured) > 0.15*measured {
			t.Errorf("%s: the model takes %.1f s, real hosts %.1f s", policy, median, measured)
		}
	}
}
