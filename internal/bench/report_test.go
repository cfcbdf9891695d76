package main

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func took(round int, seconds ...float64) []sample {
	var all []sample
	for _, s := range seconds {
		all = append(all, sample{round: round, wall: time.Duration(s * float64(time.Second))})
	}
	return all
}

// worked is one run in which builder and middle took so many seconds of CPU.
func worked(seconds float64) []sample {
	cpu := time.Duration(seconds * float64(time.Second))
	return []sample{{wall: time.Second, builder: cpu, middle: cpu}}
}

func resultOf(g goal, straight, through []sample) *result {
	return &result{
		bench:   bench{name: "x", title: "a bench", what: "what it is", goals: []goal{g}},
		client:  "2.34.8",
		samples: map[string][]sample{direct: straight, proxy: through},
		reasons: map[string]string{},
	}
}

// Guards against a verdict that does not come from what was measured, and
// against a rate that is compared as if it were a time.
func TestVerdictComesFromMeasuredMedians(t *testing.T) {
	for _, test := range []struct {
		goal             goal
		straight, passed []sample
		want             string
	}{
		{goal{limit: 0.4}, took(0, 1, 1, 9), took(0, 0.1, 0.4, 5), "time <= 0.40x direct\t0.40x\tmet"},
		{goal{limit: 0.4}, took(0, 1, 1, 9), took(0, 0.1, 0.41, 5), "time <= 0.40x direct\t0.41x\tnot met"},
		{goal{rate: 1.1}, took(0, 2.2), took(0, 2), "rate >= 1.1x direct\t1.10x\tmet"},
		{goal{rate: 1.1}, took(0, 2), took(0, 2.2), "rate >= 1.1x direct\t0.91x\tnot met"},
		{goal{cpu: 0.4}, worked(2), worked(0.5), "CPU <= 0.40x builder, direct\t0.25x\tmet"},
		{goal{cpu: 0.4}, worked(1), worked(0.5), "CPU <= 0.40x builder, direct\t0.50x\tnot met"},
		{goal{limit: 1}, took(0, 2), nil, ""},
		{goal{limit: 1}, nil, took(0, 2), ""},
	} {
		if got := strings.Join(resultOf(test.goal, test.straight, test.passed).verdicts(), ""); got != test.want {
			t.Errorf("%+v: direct %v, proxy %v: %q, want %q", test.goal, test.straight, test.passed, got, test.want)
		}
	}
}

// Guards against a target that is measured against another way than it names.
func TestVerdictIsAgainstTheWayOfTheGoal(t *testing.T) {
	r := resultOf(goal{rate: 0.9, to: hub}, took(0, 1), took(0, 10))
	r.samples[hub] = took(0, 9.5)
	if got, want := strings.Join(r.verdicts(), ""), "rate >= 0.9x hub\t0.95x\tmet"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.reasons[hub] = "it broke"
	if got := r.verdicts(); len(got) > 0 {
		t.Errorf("%q against a way that failed", got)
	}
}

// Guards against comparing a way that ran in some rounds with another in all:
// the machine may have been slower in the others.
func TestRatioIsOverCommonRounds(t *testing.T) {
	straight := slices.Concat(took(0, 1), took(1, 100), took(2, 3))
	rare := slices.Concat(took(0, 2), took(2, 6))
	if got := ratio(rare, straight); got != 2 {
		t.Errorf("ratio %v, want 2", got)
	}
	if got := ratio(took(4, 1), straight); !math.IsNaN(got) {
		t.Errorf("ratio without a common round is %v", got)
	}
}

// Guards against a middle that is not the middle, for even and odd numbers.
func TestSpreadHasMedianAndEnds(t *testing.T) {
	if got, want := spreadOf([]float64{5, 1, 3}), (spread{3, 3, 1, 5}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := spreadOf([]float64{4, 1, 3, 2}), (spread{4, 2.5, 1, 4}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Guards against a failure that shows as a fast run or not at all.
func TestWayThatFailedShowsReasonAndFails(t *testing.T) {
	res := resultOf(goal{limit: 1}, took(0, 1), took(0, 0.5))
	r := report{results: []*result{res}, columns: wayNames}
	if err := r.failure(); err != nil {
		t.Errorf("a good run is said to fail: %v", err)
	}
	res.reasons[hub] = "it cannot"
	if !strings.Contains(r.String(), "hub: it cannot") {
		t.Errorf("the reason is missing:\n%s", r)
	}
	if err := r.failure(); err != nil {
		t.Errorf("the hub may fail, but: %v", err)
	}
	res.reasons[proxy] = "connection lost"
	if err := r.failure(); err == nil {
		t.Error("a proxy that failed is no error")
	}
	if len(res.verdicts()) > 0 {
		t.Error("a bench that failed half-way has a verdict")
	}
}

// Guards against numbers beside which others worked and that do not look so.
func TestNoisyRunsAreMarked(t *testing.T) {
	res := resultOf(goal{}, took(0, 1), took(0, 1))
	if strings.Contains(res.timeCell(proxy, res.samples[proxy]), "~") {
		t.Error("a quiet run is marked")
	}
	res.samples[proxy][0].foreign = 0.5
	if !strings.Contains(res.timeCell(proxy, res.samples[proxy]), "~") {
		t.Error("a noisy run is not marked")
	}
}

// Guards against a misspelt bench that is silently left out.
func TestUnknownWordsAreRefused(t *testing.T) {
	for _, args := range [][]string{{"-only", "pong"}, {"-columns", "proxy,nginx"}, {"-rounds", "0"}, {"-client", "2.3"}} {
		if _, err := parseOptions(args, t.Output()); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	o, err := parseOptions([]string{"-only", "ping,build"}, t.Output())
	if err != nil || !slices.Equal(o.only, []string{"ping", "build"}) || !slices.Equal(o.columns, wayNames) {
		t.Errorf("%+v, %v", o, err)
	}
}

// Guards against memory of another kind, which the kernel can take back.
func TestRssAnonIsReadInBytes(t *testing.T) {
	if got := rssAnonOf("VmHWM:\t 99 kB\nRssAnon:\t    2048 kB\nRssFile:\t 7 kB\n"); got != 2<<20 {
		t.Errorf("%d bytes", got)
	}
}

// Guards against a slow task that leaves no time for those behind it, and
// against one that has no end.
func TestTasksShareTheTime(t *testing.T) {
	l := newTimeLimit(8*time.Minute, []task{{bench: bench{share: 1}}, {bench: bench{share: 3}}})
	if got := l.end(0).Sub(l.start); got != 2*time.Minute {
		t.Errorf("the first should end after %v", got)
	}
	if got := l.end(1).Sub(l.start); got != 8*time.Minute {
		t.Errorf("the last should end after %v", got)
	}
	if got := newTimeLimit(0, []task{{}}).end(0).Sub(l.start); got < 24*time.Hour {
		t.Errorf("without a limit there is one of %v", got)
	}
}
