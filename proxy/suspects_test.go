package proxy

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/route"
)

// suspectWorld is a router with builder b1 and what is suspected.
func suspectWorld() (*route.Router, *suspects) {
	r := route.New(route.Options{})
	r.SetBuilders([]route.Builder{{Name: "b1", Systems: map[string]float64{"x86_64-linux": 1}, MaxJobs: 1, Domains: []string{"default"}}})
	return r, newSuspects(r)
}

// Guards against a builder that is avoided for a derivation for ever, and against a
// table that grows with what is built.
func TestSuspicionEndsAndIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := suspectWorld()
		s.unended("b1", labPath("hello.drv"))
		for _, c := range []struct {
			after time.Duration
			name  string
			want  int
		}{{0, "hello.drv", 1}, {0, "other.drv", 0}, {9 * time.Minute, "hello.drv", 1}, {2 * time.Minute, "hello.drv", 0}} {
			time.Sleep(c.after)
			if got := s.of(labPath(c.name), []string{"b0", "b1"}); len(got) != c.want {
				t.Errorf("after %s more %v are avoided for %s", c.after, got, c.name)
			}
		}
		for i := range 2 * maxSuspects {
			s.unended("b1", labPath(fmt.Sprintf("%d.drv", i)))
		}
		if n := s.stuck.Len(); n != maxSuspects {
			t.Errorf("%d are remembered", n)
		}
		time.Sleep(time.Hour) // until the router's timers have fired
	})
}

// Guards against a machine that is left alone for minutes since it took eight builds
// along when it was restarted.
func TestFaultsOfOneMomentCountOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := suspectWorld()
		trouble := func() string { return r.Status().Builders[0].Trouble }
		for range 8 {
			s.fault("b1", "connection lost", faultWindow)
			time.Sleep(100 * time.Millisecond)
		}
		if trouble() == "" {
			t.Error("a fault does not count")
		}
		time.Sleep(6 * time.Second)
		if got := trouble(); got != "" {
			t.Errorf("after six seconds its trouble is %q", got)
		}
		s.fault("b1", "connection lost", faultWindow)
		time.Sleep(6 * time.Second)
		if trouble() == "" {
			t.Error("the next fault counts no more than the first")
		}
		if n := len(s.faults); n != 1 {
			t.Errorf("%d builders are remembered", n)
		}
		time.Sleep(time.Hour)
	})
}

// Guards against a machine that hung once and counts as having failed twice, when its
// connection is given up.
func TestAftermathOfAFaultIsNoFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := suspectWorld()
		s.fault("b1", "no sign of life", faultWindow)
		time.Sleep(time.Minute)
		s.unended("b1", labPath("hello.drv"))
		if got := r.Status().Builders[0].Trouble; got != "" {
			t.Errorf("its trouble is %q", got)
		}
		time.Sleep(2 * time.Minute)
		s.unended("b1", labPath("hello.drv"))
		if r.Status().Builders[0].Trouble == "" {
			t.Error("a session that does not end is no fault")
		}
		time.Sleep(time.Hour)
	})
}
