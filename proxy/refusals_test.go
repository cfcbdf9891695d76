package proxy

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// Guards against numbers that nobody sees, and against ones that tell clients what
// happens to others.
func TestAdminSeesHowManyWereTurnedAway(t *testing.T) {
	l := newLab(t)
	l.proxy.refusals.count(RefusedPenalty)
	l.proxy.refusals.count(RefusedPenalty)
	l.proxy.refusals.count(RefusedRate)
	var text strings.Builder
	err := l.proxy.AskAdmin(t.Context(), &text, []string{"status"}, Look{})
	if want := "Turned away or made to wait since the start: connections_per_minute 1, per_source_penalties 2"; err != nil || !strings.Contains(text.String(), want) {
		t.Errorf("no %q in:\n%s%v", want, &text, err)
	}
	s := &statusAnswer{}
	s.addRefusals(&asker{client: &Identity{}}, l.proxy.Refusals())
	if len(s.Refusals) != 0 {
		t.Errorf("a client is told %v", s.Refusals)
	}
}

// Guards against a reason that metrics do not know.
func TestMetricsTellEveryReasonApart(t *testing.T) {
	text, err := os.ReadFile("refusals.go")
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	m := l.monitored()
	all := regexp.MustCompile(`(?m)^\t\w+ +Refusal += "(\w+)"`).FindAllStringSubmatch(string(text), -1)
	for _, found := range all {
		l.proxy.refusals.count(Refusal(found[1]))
	}
	numbers := m.numbers()
	for _, found := range all {
		if n := numbers[fmt.Sprintf("refusals_total{result=%q}", found[1])]; n != 1 {
			t.Errorf("%s is counted %v times", found[1], n)
		}
	}
	if len(all) < 12 || numbers[`refusals_total{result="other"}`] != 0 {
		t.Errorf("%d reasons are told apart, and others counted", len(all))
	}
}
