package route

import "testing"

// Guards against builds that are counted after their end, or not before.
func TestBusyCountsLeases(t *testing.T) {
	r := New(Options{})
	r.SetBuilders([]Builder{{Name: "b", Systems: map[string]float64{"s": 1}, MaxJobs: 2, Domains: []string{"d"}}})
	lease, err := r.Acquire(t.Context(), Request{Asker: Asker{Principal: "p"}, Domain: "d", System: "s"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := r.Busy("b"); n != 1 {
		t.Errorf("%d of one lease", n)
	}
	lease.Release()
	if n, none := r.Busy("b"), r.Busy("other"); n != 0 || none != 0 {
		t.Errorf("%d and %d without any", n, none)
	}
}
