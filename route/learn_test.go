package route

import (
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"
)

// TestDurationsAreLearned guards what estimates come from: the name and system, else
// the name, else one of the longest.
func TestDurationsAreLearned(t *testing.T) {
	both := linux("b1", 1)
	both.Systems["i686-linux"] = 0.5
	c := newClockwork(t, Options{}, both)
	estimate := func(job, system string) float64 {
		req := job1(job)
		req.System = system
		return c.Explain(req).Estimate.Seconds()
	}
	near(t, "before anything", estimate("a", "x86_64-linux"), firstGuess)
	c.build("a", "b1", 100*time.Second)
	c.build("b", "b1", 10*time.Second)
	c.build("c", "b1", time.Second)
	near(t, "a", estimate("a", "x86_64-linux"), 100)
	near(t, "a on another system", estimate("a", "i686-linux"), 100)
	near(t, "what is not known", estimate("d", "x86_64-linux"), 100)
	c.build("a", "b1", 200*time.Second)
	near(t, "a, again", estimate("a", "x86_64-linux"), 130)
}

// TestSpeedIsLearned guards against a speed factor that is wrong in the policy and
// believed for ever, and against speeds that run away together.
func TestSpeedIsLearned(t *testing.T) {
	c := newClockwork(t, Options{}, linux("good", 1), linux("bad", 1))
	for range 60 { // bad is half as fast as it says
		c.build("it", "good", 10*time.Second)
		c.build("it", "bad", 20*time.Second)
	}
	status := c.Status().Builders
	bad, good := status[0].Speed, status[1].Speed
	if ratio := good / bad; ratio < 1.8 || ratio > 2.2 {
		t.Errorf("good is %g as fast as bad", ratio)
	}
	if good > 2 || bad < 0.4 {
		t.Errorf("speeds %g and %g", good, bad)
	}
	expect(t, "goes to", c.Explain(job1("it")).Builder, "good")
}

// TestSpeedIsBounded guards against one absurd build that says a builder is a thousand
// times as fast, and against very short ones.
func TestSpeedIsBounded(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1))
	c.build("it", "b1", 24*time.Hour)
	for range 200 {
		c.build("it", "b1", time.Second)
		c.estimates.learn("it", "x86_64-linux", "another", 1e6)
	}
	if s := c.Status().Builders[0].Speed; s > paceLimit {
		t.Errorf("speed %g", s)
	}
	before := c.Status().Builders[0].Speed
	c.build("it", "b1", time.Second/8)
	near(t, "speed after a very short one", c.Status().Builders[0].Speed, before)
}

// TestHistoryOutlivesTheRouter guards what is kept over a restart.
func TestHistoryOutlivesTheRouter(t *testing.T) {
	c := newClockwork(t, Options{}, linux("b1", 1), linux("b2", 1))
	c.build("a", "b1", 100*time.Second)
	c.build("a", "b2", 50*time.Second)
	req := job1("b")
	req.InputJobs = []string{"a"}
	p := c.ask(req)
	p.lease.Transferred(1<<30, 2*time.Second)
	p.lease.Release()
	text, err := json.Marshal(c.History())
	if err != nil {
		t.Fatal(err)
	}
	var h History
	if err := json.Unmarshal(text, &h); err != nil {
		t.Fatal(err)
	}
	again := newClockwork(t, Options{History: h}, linux("b1", 1), linux("b2", 1))
	slices.Reverse(h.Jobs) // inputs are restored as if they were just asked for
	if got := again.History(); !reflect.DeepEqual(got, h) {
		t.Errorf("came back as\n%+v\nnot\n%+v", got, h)
	}
	want, got := c.Explain(job1("a")), again.Explain(job1("a"))
	if want.String() != got.String() || got.Builds != 2 {
		t.Errorf("decides\n%s\nnot\n%s", got, want)
	}
}

// TestNonsenseIsNoHistory guards against a file that makes estimates infinite.
func TestNonsenseIsNoHistory(t *testing.T) {
	h := History{Builders: []BuilderHistory{{Builder: "b1", Bandwidth: math.Inf(1), Speed: math.NaN()}, {Builder: "b2", Speed: 1e9, Builds: -5}}}
	for _, s := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		h.Jobs = append(h.Jobs, JobHistory{Job: "a", Systems: []DurationHistory{{System: "x86_64-linux", Seconds: s, Builds: 1}}, Inputs: []string{"a", ""}})
	}
	h.Jobs = append(h.Jobs, JobHistory{Job: "b", Systems: []DurationHistory{{System: "x86_64-linux", Seconds: 5}}})
	c := newClockwork(t, Options{History: h}, linux("b1", 1), linux("b2", 1))
	d := c.Explain(job1("a"))
	near(t, "estimate", d.Estimate.Seconds(), firstGuess)
	for _, candidate := range d.Candidates {
		near(t, "speed", candidate.Speed, 1)
	}
}

// TestJobsAreBounded guards the memory of what is learned against clients that make up
// names.
func TestJobsAreBounded(t *testing.T) {
	e := newEstimates()
	for i := range 3 * jobLimit {
		e.learnInputs(string(rune('a'+i%26))+time.Duration(i).String(), []string{"glibc", time.Duration(i + 1).String()})
	}
	if n := e.jobs.Len(); n > jobLimit {
		t.Errorf("%d jobs", n)
	}
	glibc, _ := e.jobs.Peek("glibc")
	if n := len(glibc.followers); n != followerLimit {
		t.Errorf("%d followers", n)
	}
}

// TestJobNames guards the name under which builds are remembered.
func TestJobNames(t *testing.T) {
	for name, want := range map[string]string{
		"hello-2.12.1.drv": "hello", "hello-2.12.1-dev": "hello", "hello": "hello", "python3.11-requests-2.28.1": "python3.11-requests",
		"gcc-wrapper-13.2.0.drv": "gcc-wrapper", "-1": "-1", "": "", "a-": "a-", "linux-6.6": "linux", "source": "source",
	} {
		expect(t, name, JobName(name), want)
	}
}

// TestAbsurdDurationsDoNotSpin guards against a history whose durations are longer
// than clocks go: the next plan must not be due at once, again and again.
func TestAbsurdDurationsDoNotSpin(t *testing.T) {
	h := History{Jobs: []JobHistory{{Job: "it", Systems: []DurationHistory{{System: "x86_64-linux", Seconds: 1e300, Builds: 1}}}}}
	c := newClockwork(t, Options{History: h}, linux("fast", 1).fast(10), linux("slow", 1))
	c.ask(job1("it")).lease.Began()
	expect(t, "the second, done on fast before it would be on slow", c.ask(job1("it")).on(), "")
	if due := c.NextDue(); !due.IsZero() && due.Before(c.now.Add(time.Hour)) {
		t.Errorf("the next plan is due at %s, now is %s", due, c.now)
	}
}
