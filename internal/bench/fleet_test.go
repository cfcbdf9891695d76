package main

import (
	"strings"
	"testing"
	"time"

	"nixbastion/internal/fleet"
)

// Guards against a table whose verdict nobody would notice: a goal that is missed is
// an error, one that is reached is not.
func TestFleetGoalsAreJudged(t *testing.T) {
	o, err := parseFleet([]string{"-story", "trace"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	trace := o.story.trace(o.seed)
	run := func(way string, perBound float64) fleet.Result {
		return fleet.Result{Way: way, Bound: trace.Bound(), Makespan: time.Duration(perBound * float64(trace.Bound()))}
	}
	others := []fleet.Result{run(fleet.Direct, 2), run(fleet.Hub, 1.5)}
	var out strings.Builder
	if err := o.print(&out, trace, append(others, run(fleet.Proxy, 1.15))); err != nil {
		t.Errorf("all goals are reached: %v\n%s", err, out.String())
	}
	for _, want := range []string{"proxy / bound: 1.15, goal 1.25", "proxy / hub: 0.77, goal 0.80", "proxy / direct: 0.57, goal 0.75"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	if err := o.print(&out, trace, append(others, run(fleet.Proxy, 1.24))); err == nil || !strings.Contains(err.Error(), "proxy / hub is 0.83") {
		t.Errorf("a missed goal is told as %v", err)
	}
	if _, err := parseFleet([]string{"-story", "nothing"}, t.Output()); err == nil || !strings.Contains(err.Error(), "mixed, trace") {
		t.Errorf("an unknown story is told as %v", err)
	}
}
