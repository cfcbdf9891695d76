package proxy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/route"
)

// The rule by which builders are ranked, written a second time, as simply as it can be
// said: nothing of package route is used but what it has learned, durations and speeds.

// naiveBuilder is a builder of the policy.
type naiveBuilder struct {
	name                         string
	systems, features, mandatory []string
	slots                        int
	speed                        float64
	mem                          int64 // amount of the resource
}

// settings are those that a policy needs besides systems and max_jobs.
func (b *naiveBuilder) settings() string {
	text := fmt.Sprintf(", features: [%s], mandatory_features: [%s], speed_factor: %g",
		strings.Join(b.features, ", "), strings.Join(b.mandatory, ", "), b.speed)
	if b.mem > 0 {
		text += fmt.Sprintf(", resources: {mem: %d}", b.mem)
	}
	return text
}

// naiveJob is a build that is asked for.
type naiveJob struct {
	system         string
	features, soft []string
	mem            int64
	inputs         map[string]int64 // bytes by path
}

// naiveRun is a build that runs.
type naiveRun struct {
	builder    string
	mem        int64
	began, end time.Time // the end by estimate
}

type naive struct {
	builders []naiveBuilder
	runs     map[string]*naiveRun // by name
	holds    map[string]map[string]bool
	// expects is what the last ranking thought that its build would take, by builder.
	expects map[string]time.Duration
}

func newNaive(builders []naiveBuilder) *naive {
	n := &naive{builders: builders, runs: map[string]*naiveRun{}, holds: map[string]map[string]bool{}}
	for _, b := range builders {
		n.holds[b.name] = map[string]bool{}
	}
	return n
}

// began notes a build of the job that was ranked last.
func (n *naive) began(name, builder string, job *naiveJob, now time.Time) {
	n.runs[name] = &naiveRun{builder: builder, mem: job.mem, began: now, end: now.Add(n.expects[builder])}
	for path := range job.inputs {
		n.holds[builder][path] = true
	}
}

func (n *naive) ended(name string) { delete(n.runs, name) }

// look guesses anew when builds will end that take longer than thought: by half of what
// they took.
func (n *naive) look(now time.Time) {
	for _, r := range n.runs {
		if !r.end.After(now) {
			r.end = now.Add(max(time.Second, now.Sub(r.began)/2))
		}
	}
}

// fits is the rule of Nix's build hook, with wishes and resources.
func (b *naiveBuilder) fits(job *naiveJob) bool {
	has := slices.Concat(b.features, b.mandatory)
	for _, f := range job.features {
		if !slices.Contains(has, f) && !slices.Contains(job.soft, f) {
			return false
		}
	}
	for _, f := range b.mandatory {
		if !slices.Contains(job.features, f) {
			return false
		}
	}
	return slices.Contains(b.systems, job.system) && b.mem >= job.mem
}

// waits is how long it takes until the builder has room for a job, by estimate.
func (n *naive) waits(b *naiveBuilder, job *naiveJob, now time.Time) (wait time.Duration, busy int) {
	var here []*naiveRun
	for _, r := range n.runs {
		if r.builder == b.name {
			here = append(here, r)
		}
	}
	slices.SortFunc(here, func(a, b *naiveRun) int { return a.end.Compare(b.end) })
	busy = len(here)
	for {
		var mem int64
		for _, r := range here {
			mem += r.mem
		}
		if len(here) < b.slots && mem+job.mem <= b.mem {
			return wait, busy
		}
		wait = here[0].end.Sub(now)
		here = here[1:]
	}
}

// finish is when a job counts as done on a builder, in seconds.
func (n *naive) finish(b *naiveBuilder, job *naiveJob, now time.Time, seconds, learned float64) (done float64, free bool) {
	const perByte, bandwidth, crowding, unsure = 150e-9, 100e6, 0.01, 0.02
	wait, busy := n.waits(b, job, now)
	build := seconds / (b.speed * learned)
	for _, f := range job.soft {
		if slices.Contains(job.features, f) && !slices.Contains(b.features, f) && !slices.Contains(b.mandatory, f) {
			build *= 2
		}
	}
	var bytes float64
	for path, size := range job.inputs {
		if !n.holds[b.name][path] {
			bytes += float64(size)
		}
	}
	n.expects[b.name] = time.Duration(build * float64(time.Second))
	done = wait.Seconds() + bytes*(1/bandwidth+perByte) + build*(1+crowding*float64(busy)/float64(b.slots))
	if wait > 0 {
		done *= 1 + unsure
	}
	return done, wait == 0
}

// agrees compares a ranking with this one. Who finishes within a millisecond of each
// other may change places: sizes are rounded in the router.
func (n *naive) agrees(t *testing.T, text string, r *ranking, job *naiveJob, now time.Time, learned []route.BuilderStatus) {
	t.Helper()
	type place struct {
		name string
		done float64
		free bool
	}
	n.look(now)
	n.expects = map[string]time.Duration{}
	var places []place
	var unfit []string
	for i := range n.builders {
		b := &n.builders[i]
		if !b.fits(job) {
			unfit = append(unfit, b.name)
			continue
		}
		at := slices.IndexFunc(learned, func(s route.BuilderStatus) bool { return s.Name == b.name })
		done, free := n.finish(b, job, now, r.EstimateSeconds, learned[at].Speed)
		places = append(places, place{b.name, done, free})
	}
	slices.SortStableFunc(places, func(a, b place) int { return cmp.Compare(a.done, b.done) })
	fault := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("%s; naively the order is %v, and %v are unfit:\n%s", fmt.Sprintf(format, args...), places, unfit, text)
	}
	if len(r.Builders) != len(places)+len(unfit) {
		fault("%d builders", len(r.Builders))
	}
	for i, b := range r.Builders {
		if i >= len(places) {
			if !slices.Contains(unfit, b.Name) || b.Eligible {
				fault("%s is %s", b.Name, b.State)
			}
			continue
		}
		at := slices.IndexFunc(places, func(p place) bool { return p.name == b.Name })
		switch {
		case at < 0:
			fault("%s is %s", b.Name, b.State)
		case math.Abs(places[at].done-b.Load.FinishSeconds) > 1e-3 || math.Abs(places[at].done-places[i].done) > 1e-3:
			fault("%s is number %d and done in %gs", b.Name, i+1, b.Load.FinishSeconds)
		case places[at].free != (b.State == "free"):
			fault("%s is %s", b.Name, b.State)
		}
	}
	want := ""
	if len(places) > 0 && r.Builders[0].State == "free" {
		want = r.Builders[0].Name
	}
	if r.Builder != want {
		fault("it goes to %q, not %q", r.Builder, want)
	}
}
