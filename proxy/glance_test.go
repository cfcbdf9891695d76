package proxy

import (
	"testing"
	"time"

	"nixbastion/route"
)

// Guards against clients that stop the router by asking, and against answers that
// are old.
func TestQuestionsShareAGlance(t *testing.T) {
	r := route.New(route.Options{})
	r.SetBuilders([]route.Builder{{Name: "b1", MaxJobs: 1}})
	shared, fresh := glances{age: time.Hour}, glances{age: 1}
	for _, g := range []*glances{&shared, &fresh} {
		if state := g.take(r); len(state.Builders) != 1 || state.Builders[0].Trouble != "" {
			t.Errorf("%+v", state)
		}
	}
	r.SetUp("b1", false, "gone")
	if state := shared.take(r); state.Builders[0].Trouble != "" {
		t.Errorf("the router was asked again: %+v", state)
	}
	if state := fresh.take(r); state.Builders[0].Trouble != "down: gone" {
		t.Errorf("the answer is old: %+v", state)
	}
}
