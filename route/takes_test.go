package route

import (
	"slices"
	"testing"
	"time"
)

// Guards against work that is given ahead to a builder that gets no builds.
func TestTakesNamesWhoGetsBuilds(t *testing.T) {
	r := New(Options{})
	var builders []Builder
	for _, name := range []string{"fine", "down", "drained", "suspended", "overloaded", "asleep", "foreign"} {
		b := Builder{Name: name, Systems: map[string]float64{"x86_64-linux": 1}, MaxJobs: 1, Domains: []string{"default"}}
		if name == "foreign" {
			b.Domains = []string{"other"}
		}
		builders = append(builders, b)
	}
	r.SetBuilders(builders)
	if got := r.Takes("default"); len(got) != 6 || !slices.IsSorted(got) {
		t.Errorf("at first: %q", got)
	}
	r.SetUp("down", false, "")
	r.Drain("drained", "")
	r.Suspend("suspended", "", time.Now().Add(time.Hour))
	r.SetOverloaded("overloaded", "load")
	r.SetAsleep("asleep", true, time.Minute)
	if got := r.Takes("default"); !slices.Equal(got, []string{"fine"}) {
		t.Errorf("got %q", got)
	}
	if got := r.Takes("nobody's"); got != nil {
		t.Errorf("a domain without builders: %q", got)
	}
}
