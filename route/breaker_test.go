package route

import (
	"testing"
	"time"
)

// TestBreakerTriesOneBuildAtATime guards against a broken builder that fails a whole
// queue: it rests, longer each time, and then proves itself with one build.
func TestBreakerTriesOneBuildAtATime(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 4))
	first := c.ask(askLinux())
	c.Fault("b1", "out of disk")
	first.lease.Release()
	second, third := c.ask(askLinux()), c.ask(askLinux())
	expect(t, "while it rests", second.on()+third.on(), "")
	expect(t, "trouble", c.Status().Builders[0].Trouble, "suspended until 03:04:10 UTC: out of disk")
	c.pass(firstPause)
	expect(t, "the trial", second.on(), "b1")
	expect(t, "beside the trial", third.on(), "")

	c.Fault("b1", "out of disk")
	second.lease.Release()
	c.pass(2 * firstPause)
	expect(t, "after the second fault", third.on(), "")
	c.pass(firstPause)
	expect(t, "the second trial", third.on(), "b1")
	fourth := c.ask(askLinux())
	expect(t, "beside the second trial", fourth.on(), "")
	third.lease.Release() // neither good nor bad
	expect(t, "another trial", fourth.on(), "b1")
	fourth.lease.Worked() // it failed by itself
	fourth.lease.Release()
	if left := c.byName["b1"].weight(c.now); left > 1 {
		t.Errorf("%g faults are left after the builder worked", left)
	}
	for range 3 {
		expect(t, "after a good build", c.ask(askLinux()).on(), "b1")
	}
}

// TestPardonEndsThePause guards an admin who has mended a builder against waiting for
// the end of its pause.
func TestPardonEndsThePause(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 2))
	for range 8 {
		c.Fault("b1", "not trusted")
	}
	first, second := c.ask(askLinux()), c.ask(askLinux())
	c.Pardon("b1")
	expect(t, "pardoned", first.on()+second.on(), "b1b1")
}

// TestFaultsAreForgotten guards against a builder that is punished today for what it
// did last week.
func TestFaultsAreForgotten(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	for range 8 {
		c.Fault("b1", "lost the connection")
	}
	if due := c.NextDue(); due.IsZero() && c.waiting > 0 {
		t.Fatal("no end of the pause")
	}
	p := c.ask(askLinux())
	if pause := c.NextDue().Sub(c.now); pause != longestPause {
		t.Errorf("rests for %s", pause)
	}
	p.ticket.Cancel()
	c.pass(20 * faultHalfLife)
	c.Fault("b1", "lost the connection")
	c.ask(askLinux())
	if pause := c.NextDue().Sub(c.now); pause > firstPause+time.Second {
		t.Errorf("rests for %s after old faults", pause)
	}
}

// TestStatesAreToldApart guards who waits and who fails: builds wait for a builder
// that is overloaded or rests, and not for one that is down or drained.
func TestStatesAreToldApart(t *testing.T) {
	tests := []struct {
		state string
		set   func(*Router)
		waits bool
		end   func(*Router)
	}{
		{"overloaded", func(r *Router) { r.SetOverloaded("b1", "load 40 on 8 cores") }, true, func(r *Router) { r.SetOverloaded("b1", "") }},
		{"suspended", func(r *Router) { r.Suspend("b1", "", frozen().Add(time.Hour)) }, true, func(r *Router) { r.Suspend("b1", "", time.Time{}) }},
		{"down", func(r *Router) { r.SetUp("b1", false, "") }, false, func(r *Router) { r.SetUp("b1", true, "") }},
		{"drained", func(r *Router) { r.Drain("b1", "") }, false, func(r *Router) { r.Undrain("b1") }},
	}
	for _, test := range tests {
		t.Run(test.state, func(t *testing.T) {
			c := newClockwork(t, Options{}, linux("b1", 2))
			running := c.ask(askLinux())
			test.set(c.Router)
			p := c.ask(askLinux())
			if p.on() != "" || (p.err == nil) != test.waits {
				t.Fatalf("on %q, error %v", p.on(), p.err)
			}
			running.lease.Release() // in peace
			test.end(c.Router)
			if test.waits {
				expect(t, "afterwards", p.on(), "b1")
			}
			expect(t, "a new one", c.ask(askLinux()).on(), "b1")
		})
	}
}
