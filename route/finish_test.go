package route

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestWaitsForTheBuilderThatIsDoneFirst guards the right to wait: a long build does not
// go to a slow builder because that is free, a short one does.
func TestWaitsForTheBuilderThatIsDoneFirst(t *testing.T) {
	c := newClockwork(t, Options{}, linux("fast", 1).fast(10), linux("slow", 1))
	c.build("long", "slow", 1000*time.Second)
	c.build("short", "slow", time.Second)
	c.build("blocker", "slow", 500*time.Second)

	blocker := c.ask(job1("blocker")) // 50 s
	expect(t, "blocker", blocker.on(), "fast")
	blocker.lease.Began()
	long := c.ask(job1("long"))
	expect(t, "long, done after 150 s on fast and 1000 s on slow", long.on(), "")
	expect(t, "short, done after 51 s on fast and 1 s on slow", c.ask(job1("short")).on(), "slow")
	c.pass(50 * time.Second)
	blocker.lease.Built()
	expect(t, "long", long.on(), "fast")
}

// TestWaitEndsWhenTheOtherTakesTooLong guards against a wait for a builder whose build
// does not end: when it is overdue the free one is taken.
func TestWaitEndsWhenTheOtherTakesTooLong(t *testing.T) {
	c := newClockwork(t, Options{}, linux("fast", 1).fast(4), linux("slow", 1))
	c.build("it", "slow", 100*time.Second)
	first := c.ask(job1("it")) // 25 s
	first.lease.Began()
	second := c.ask(job1("it"))
	expect(t, "second, done after 50 s on fast and 100 s on slow", second.on(), "")
	for i := 0; second.on() == ""; i++ {
		due := c.NextDue()
		if due.IsZero() || i == 20 {
			t.Fatalf("waits for ever, after %s", c.now.Sub(frozen())-100*time.Second)
		}
		c.pass(due.Sub(c.now))
	}
	waited := c.now.Sub(frozen()) - 100*time.Second
	if second.on() != "slow" || waited < 50*time.Second || waited > 200*time.Second {
		t.Errorf("went to %s after %s", second.on(), waited)
	}
}

// TestThoseBeforeCount guards against a whole queue that waits for one fast builder:
// each request counts what those before it will take.
func TestThoseBeforeCount(t *testing.T) {
	c := newClockwork(t, Options{}, linux("fast", 1).fast(4), linux("slow", 1))
	c.build("it", "slow", 100*time.Second)
	first := c.ask(job1("it"))
	first.lease.Began()
	var all []*placed
	for range 6 {
		all = append(all, c.ask(job1("it")))
	}
	// On fast they would be done after 50, 75, 100, 125, ... s, on slow after 100.
	slow := 0
	for i, p := range all {
		if p.on() == "slow" {
			slow++
		} else if p.on() != "" {
			t.Errorf("request %d went to %s", i, p.on())
		}
	}
	if slow != 1 || all[0].on() != "" {
		t.Errorf("%d went to slow, the first one to %q", slow, all[0].on())
	}
}

// TestInputsWeigh guards against gigabytes that are sent to an idle builder although
// the one that has them is done sooner, and against a builder that is waited for
// longer than the bytes take.
func TestInputsWeigh(t *testing.T) {
	c := newClockwork(t, Options{}, linux("has", 1), linux("lacks", 1))
	c.build("short", "lacks", 5*time.Second)
	c.build("long", "lacks", 1000*time.Second)
	closure := Input{c.Intern("/nix/store/toolchain"), 2e9} // 20 s, and a price of 300 s
	c.NoteHeld("has", closure.ID)
	with := func(req Request) Request {
		req.Inputs = []Input{closure}
		return req
	}
	first := c.ask(with(job1("short")))
	expect(t, "first", first.on(), "has")
	first.lease.Began()
	second := c.ask(with(job1("short")))
	expect(t, "second, done after 10 s on has and, with the price, 325 s on lacks", second.on(), "")
	c.pass(5 * time.Second)
	first.lease.Built()
	expect(t, "second", second.on(), "has")
	second.lease.Release()

	blocker := c.ask(job1("long"))
	expect(t, "blocker", blocker.on(), "has")
	third := c.ask(with(job1("short")))
	expect(t, "third, done after 1005 s on has and, with the price, 325 s on lacks", third.on(), "lacks")
	terms := third.lease.Terms()
	near(t, "transfer", terms.Transfer.Seconds(), 20)
	third.lease.Transferred(2e9, 10*time.Second)
	third.lease.Release()
	near(t, "bytes a second, learned", c.Status().Builders[1].Bandwidth, 2e8)
	if d := c.Explain(with(job1("short"))); d.Builder != "lacks" || d.Candidates[0].Missing != 0 {
		t.Errorf("what was sent is not known to be there:\n%s", d)
	}
}

// TestBytesOnTheirWayAreNotSentTwice guards against a closure that two builds bring to
// one builder, and against one that is thought to be there though its transfer failed.
func TestBytesOnTheirWayAreNotSentTwice(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 2))
	req := askLinux()
	req.Inputs = []Input{{c.Intern("/nix/store/toolchain"), 1e9}}
	first := c.ask(req)
	c.pass(4 * time.Second)
	d := c.Explain(req)
	if c := d.Candidates[0]; c.Missing != 0 || c.Terms.Transfer.Round(time.Second) != 6*time.Second {
		t.Errorf("the second build is to wait for the rest of the first one's bytes:\n%s", d)
	}
	first.lease.Release() // without Transferred
	if d := c.Explain(req); d.Candidates[0].Missing != 1e9 {
		t.Errorf("bytes that never came count as there:\n%s", d)
	}
}

// TestWishesMayBeIgnored guards soft features: they are preferred, not required.
func TestWishesMayBeIgnored(t *testing.T) {
	c := newClockwork(t, Options{}, linux("big", 1).with("big-parallel"), linux("small", 2))
	req := askLinux("big-parallel")
	req.Soft = []string{"big-parallel"}
	expect(t, "first", c.ask(req).on(), "big")
	expect(t, "second, done after 120 s on big and, with the wish, 120 s on small", c.ask(req).on(), "small")
	req.Soft = nil
	expect(t, "as a requirement", c.ask(req).on(), "")
	only := newClockwork(t, Options{}, linux("small", 1))
	req.Soft = []string{"big-parallel"}
	expect(t, "nobody has it", only.ask(req).on(), "small")
}

// TestAvoidedIsTheLast guards against a suspect builder that gets its build again while
// another is there, and against a build that fails since only the suspect is left.
func TestAvoidedIsTheLast(t *testing.T) {
	c := newClockwork(t, Options{}, linux("suspect", 4).fast(100), linux("other", 1))
	req := askLinux()
	req.Avoid = []Exclusion{{"suspect", "a session did not end"}}
	expect(t, "first", c.ask(req).on(), "other")
	expect(t, "second, waits", c.ask(req).on(), "")
	c.SetUp("other", false, "gone")
	expect(t, "third", c.ask(req).on(), "suspect")
}

// TestResourcesAreCounted guards against more of a resource than there is, and against
// a build that holds up others which need none of it.
func TestResourcesAreCounted(t *testing.T) {
	b := linux("b1", 8)
	b.Resources = map[string]int64{"mem": 64}
	c := newClockwork(t, Options{}, b)
	req := askLinux()
	req.Needs = map[string]int64{"mem": 32}
	first, second, third := c.ask(req), c.ask(req), c.ask(req)
	if first.on() == "" || second.on() == "" || third.on() != "" {
		t.Fatalf("placed on %q, %q, %q", first.on(), second.on(), third.on())
	}
	if taken := c.Status().Builders[0].Taken["mem"]; taken != 64 {
		t.Errorf("%d are taken", taken)
	}
	expect(t, "one that needs none", c.ask(askLinux()).on(), "b1")
	first.lease.Release()
	expect(t, "third", third.on(), "b1")
	req.Needs = map[string]int64{"mem": 65, "kvm": 1}
	none := c.ask(req)
	if none.err == nil || !strings.Contains(none.err.Error(), "b1: has 0 kvm, not 1, 64 mem, not 65") {
		t.Errorf("got %v", none.err)
	}
}

// TestAloneIsAlone guards a benchmark against company: none is there when it begins,
// none comes while it runs, and it does not starve behind a stream of short ones.
func TestAloneIsAlone(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 3))
	c.build("short", "b1", 10*time.Second)
	c.build("bench", "b1", 30*time.Second)
	running := []*placed{c.ask(job1("short")), c.ask(job1("short"))}
	for _, p := range running {
		p.lease.Began()
	}
	bench := job1("bench")
	bench.Alone = true
	alone := c.ask(bench)
	expect(t, "the benchmark beside two", alone.on(), "")
	later := c.ask(by("zoe", job1("short"))) // done when those are that run already
	c.pass(10 * time.Second)
	running[0].lease.Built()
	running[1].lease.Built()
	if alone.on() == "" && later.on() == "" {
		t.Fatal("nobody has the free builder")
	}
	if later.on() != "" {
		later.lease.Built()
	}
	expect(t, "the benchmark", alone.on(), "b1")
	waits := c.ask(job1("short"))
	expect(t, "beside the benchmark", waits.on(), "")
	alone.lease.Built()
	expect(t, "after it", waits.on(), "b1")
}

// TestAsleepCostsItsWaking guards against a builder that is woken for a build that is
// done sooner elsewhere, and against one that is never woken.
func TestAsleepCostsItsWaking(t *testing.T) {
	c := newClockwork(t, Options{}, linux("asleep", 4), linux("awake", 1))
	c.SetAsleep("asleep", true, 40*time.Second)
	c.build("short", "awake", 10*time.Second)
	first := c.ask(job1("short"))
	expect(t, "first", first.on(), "awake")
	expect(t, "second, done after 20 s on awake and 50 s on asleep", c.ask(job1("short")).on(), "")
	third := c.ask(askLinux())
	expect(t, "third, behind them", third.on(), "")
	for range 4 {
		third = c.ask(job1("short"))
	}
	expect(t, "a longer queue", third.on(), "asleep")
	near(t, "waking", third.lease.Terms().Wake.Seconds(), 40)
}

// TestEveryTermIsSaid guards an explanation whose parts are not its sum.
func TestEveryTermIsSaid(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1), linux("b2", 2))
	c.SetAsleep("b2", true, 7*time.Second)
	c.ask(askLinux())
	req := askLinux()
	req.Inputs = []Input{{c.Intern("/nix/store/a"), 1e9}}
	req.Avoid = []Exclusion{{"b1", ""}}
	for _, candidate := range c.Explain(req).Candidates {
		terms := candidate.Terms
		sum := terms.Wait + terms.Wake + terms.Transfer + terms.Build + terms.Crowding + terms.Penalty
		if (sum-terms.Finish).Abs() > time.Millisecond || terms.Transfer < 9*time.Second {
			t.Errorf("%s: %+v", candidate.Name, terms)
		}
		for _, word := range []string{"build", "transfer"} {
			if !strings.Contains(fmt.Sprint(terms), word) {
				t.Errorf("%s does not say %s: %s", candidate.Name, word, terms)
			}
		}
	}
}
