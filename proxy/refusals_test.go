package proxy

import (
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
