package route

import (
	"testing"
	"time"
)

// Guards against numbers that say something else than the sentences of Status, and
// against builders that are counted when they are removed.
func TestGaugesAreThoseOfTheRouter(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1), arm("b2", 2))
	running := c.ask(askLinux())
	c.ask(askLinux())
	c.pass(time.Minute)
	c.ask(askLinux())
	g := c.Gauges()
	if len(g.Builders) != 2 || g.Waiting["x86_64-linux"] != 2 || len(g.Waiting) != 1 || g.Oldest != time.Minute {
		t.Errorf("%+v", g)
	}
	if b := g.Builders[0]; b.Name != "b1" || b.Busy != 1 || b.MaxJobs != 1 || !b.Up || b.Suspended || b.Trial {
		t.Errorf("b1: %+v", b)
	}
	c.Fault("b1", "disk full")
	c.SetUp("b2", false, "away")
	c.Drain("b2", "")
	c.SetOverloaded("b2", "busy")
	c.SetAsleep("b2", true, time.Minute)
	g = c.Gauges()
	if b := g.Builders[0]; b.Up || !b.Suspended || !b.Trial || b.Down {
		t.Errorf("after a fault: %+v", b)
	}
	if b := g.Builders[1]; b.Up || !b.Down || !b.Drained || !b.Overloaded || !b.Asleep || b.Suspended || b.MaxJobs != 2 {
		t.Errorf("b2: %+v", b)
	}
	c.pass(firstPause)
	if b := c.Gauges().Builders[0]; !b.Up || b.Suspended || !b.Trial {
		t.Errorf("after the pause: %+v", b)
	}
	c.SetBuilders([]Builder{arm("b2", 2)})
	if g := c.Gauges(); len(g.Builders) != 1 || g.Builders[0].Name != "b2" || len(g.Waiting) != 0 || g.Oldest != 0 {
		t.Errorf("with a lease on a removed builder: %+v", g)
	}
	running.lease.Release()
}
