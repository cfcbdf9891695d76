package route

import (
	"fmt"
	"testing"
	"time"
)

// served releases one lease after the other and returns the order in which those who
// wait are served.
func (c *clockwork) served(lease *Lease, names []string, waiting []*placed) string {
	c.t.Helper()
	order := ""
	for range waiting {
		c.pass(time.Second)
		lease.Release()
		for i, p := range waiting {
			if p.lease != nil && p.lease != lease && !p.lease.released {
				order += names[i] + " "
				lease = p.lease
				break
			}
		}
	}
	return order
}

// TestClassesGoBeforeEachOther guards a person who waits at a terminal against a bulk
// rebuild.
func TestClassesGoBeforeEachOther(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	lease := c.ask(askLinux()).lease
	var all []*placed
	names := []string{"bulk", "normal", "interactive"}
	for i, class := range []Class{Bulk, Normal, Interactive} {
		req := by(names[i], askLinux())
		req.Class = class
		all = append(all, c.ask(req))
	}
	expect(t, "order", c.served(lease, names, all), "interactive normal bulk ")
}

// TestLeastServedGoesFirst guards one principal against the flood of another, and that
// weights count.
func TestLeastServedGoesFirst(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	lease := c.ask(by("flood", askLinux())).lease
	var all []*placed
	var names []string
	for i := range 6 {
		all, names = append(all, c.ask(by("flood", askLinux()))), append(names, fmt.Sprint("f", i))
	}
	for i := range 2 {
		all, names = append(all, c.ask(by("late", askLinux()))), append(names, fmt.Sprint("late", i))
	}
	heavy := by("heavy", askLinux())
	heavy.Weight = 4
	for i := range 3 {
		all, names = append(all, c.ask(heavy)), append(names, fmt.Sprint("heavy", i))
	}
	expect(t, "order", c.served(lease, names, all), "late0 heavy0 heavy1 heavy2 f0 late1 f1 f2 f3 f4 f5 ")
}

// TestAbsenceIsNotSavedUp guards against a principal that was away for a day and then
// has everything for itself.
func TestAbsenceIsNotSavedUp(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	lease := c.ask(by("rare", askLinux())).lease
	var all []*placed
	var names []string
	for range 20 { // busy works all day
		next := c.ask(by("busy", askLinux()))
		lease.Release()
		lease = next.lease
	}
	for i := range 3 {
		all, names = append(all, c.ask(by("busy", askLinux()))), append(names, fmt.Sprint("b", i))
		all, names = append(all, c.ask(by("rare", askLinux()))), append(names, fmt.Sprint("r", i))
	}
	expect(t, "order", c.served(lease, names, all), "r0 b0 r1 b1 r2 b2 ")
}

// TestWhatMostWaitsForGoesFirst guards the learned rank: a short build that much waits
// for goes before a long one that nothing waits for.
func TestWhatMostWaitsForGoesFirst(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	c.build("leaf", "b1", 300*time.Second)
	c.build("root", "b1", 10*time.Second)
	c.build("middle", "b1", 200*time.Second)
	c.build("top", "b1", 200*time.Second)
	for job, input := range map[string]string{"middle": "root", "top": "middle", "root": "top"} { // and a circle
		req := job1(job)
		req.InputJobs = []string{input}
		c.ask(req).lease.Release()
	}
	c.pass(time.Minute) // ranks are not reckoned at every request
	lease := c.ask(askLinux()).lease
	names := []string{"leaf", "top", "middle", "root"}
	var all []*placed
	for _, name := range names {
		all = append(all, c.ask(job1(name)))
	}
	got := c.served(lease, names, all)
	if got[:len("root ")] == "leaf " || got[len(got)-len("leaf "):] != "leaf " {
		t.Errorf("order %s", got)
	}
}

// TestWhatIsLearnedCountsForThoseWhoWait guards against a queue that was put in order
// when nothing was known, and stays so: of two jobs that wait in many builds, the long
// one goes first as soon as one of each has ended.
func TestWhatIsLearnedCountsForThoseWhoWait(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	names := []string{"short", "long", "short", "long", "short", "long"}
	var all []*placed
	for _, name := range names {
		all = append(all, c.ask(job1(name)))
	}
	for i, took := range []time.Duration{time.Second, 100 * time.Second} {
		all[i].lease.Began()
		c.pass(took)
		all[i].lease.Built()
	}
	order := ""
	for range 4 {
		for i, p := range all {
			if p.lease != nil && !p.lease.released {
				order += names[i] + " "
				p.lease.Release()
				break
			}
		}
	}
	expect(t, "order", order, "long long short short ")
	if len(c.byJob) != 0 || c.work > 1e-6 || c.work < -1e-6 {
		t.Errorf("left %d jobs and %g seconds of work", len(c.byJob), c.work)
	}
}

// TestSharedBuildGoesWithTheFirstOfThem guards a person who waits for what a bulk
// rebuild asked for before: it goes when the person has a turn, once, and counts for
// the person.
func TestSharedBuildGoesWithTheFirstOfThem(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	lease := c.ask(askLinux()).lease
	bulk := by("bulk", askLinux())
	bulk.Class = Bulk
	shared := c.ask(bulk)
	others := []*placed{c.ask(askLinux()), c.ask(askLinux())}
	person := Asker{Principal: "person", Class: Interactive, PrincipalMaxJobs: 1}
	shared.ticket.Join(person)
	shared.ticket.Join(person)
	lease.Release()
	if shared.on() != "b1" || others[0].on() != "" {
		t.Fatalf("the shared build is on %q, another on %q", shared.on(), others[0].on())
	}
	own := by("person", askLinux())
	own.Asker = person
	again := c.ask(own)
	expect(t, "the person's limit", again.on(), "")
	shared.lease.Release()
	expect(t, "the person's next", again.on(), "b1")
	again.lease.Release()
	others[0].lease.Release()
	others[1].lease.Release()
	if c.waiting != 0 || len(c.lanes) != 0 || len(c.principals) != 0 {
		t.Errorf("%d wait in %d lanes of %d principals", c.waiting, len(c.lanes), len(c.principals))
	}

	bulk.Others = []Asker{person}
	lease = c.ask(askLinux()).lease
	shared = c.ask(bulk)
	shared.ticket.Cancel()
	if c.waiting != 0 || len(c.lanes) != 0 {
		t.Errorf("a cancelled build left a turn: %d wait in %d lanes", c.waiting, len(c.lanes))
	}
	lease.Release()
}

// TestNobodyStarves guards a bulk build against an endless stream of others.
func TestNobodyStarves(t *testing.T) {
	c := newClockwork(t, Options{StarveAfter: 10 * time.Minute}, linux("b1", 1))
	bulk := by("bulk", askLinux())
	bulk.Class = Bulk
	lease := c.ask(askLinux()).lease
	starving := c.ask(bulk)
	for range 9 {
		next := c.ask(askLinux())
		c.pass(time.Minute)
		lease.Release()
		lease = next.lease
		if lease == nil {
			t.Fatal("the bulk build came too early")
		}
	}
	next := c.ask(askLinux())
	c.pass(time.Minute)
	lease.Release()
	if starving.on() != "b1" || next.on() != "" {
		t.Errorf("after ten minutes the starving one is on %q, a new one on %q", starving.on(), next.on())
	}
}

// TestPositionsAreInOrder guards against a place in the queue that says nothing.
func TestPositionsAreInOrder(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	lease := c.ask(by("flood", askLinux())).lease
	for range 5 {
		c.ask(by("flood", askLinux()))
	}
	c.ask(by("late", askLinux()))
	var ahead []int
	for _, q := range c.Status().Queue {
		ahead = append(ahead, q.Waiting.Ahead)
	}
	expect(t, "ahead", fmt.Sprint(ahead), "[1 2 3 4 5 0]")
	lease.Release()
}
