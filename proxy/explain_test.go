package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/route"
)

// quarryBuilders is what a quarry has. The policy is written of it, and the naive ranking
// reads it.
var quarryBuilders = []naiveBuilder{
	{name: "b1", systems: []string{"x86_64-linux"}, features: []string{"big-parallel"}, slots: 2, speed: 3},
	{name: "b2", systems: []string{"x86_64-linux", "i686-linux"}, features: []string{"kvm"}, slots: 2, speed: 2},
	{name: "b3", systems: []string{"x86_64-linux"}, features: []string{"kvm", "big-parallel"}, slots: 3, speed: 1, mem: 32},
	{name: "b4", systems: []string{"aarch64-linux"}, slots: 1, speed: 1, mem: 8},
	{name: "b5", systems: []string{"aarch64-linux", "x86_64-linux"}, features: []string{"kvm"}, slots: 1, speed: 2, mem: 16},
	{name: "b6", systems: []string{"x86_64-linux"}, features: []string{"kvm"}, mandatory: []string{"benchmark"}, slots: 2, speed: 4},
	{name: "b7", systems: []string{"i686-linux"}, features: []string{"big-parallel"}, slots: 2, speed: 1, mem: 64},
}

// quarry is a lab whose builds go on until the test ends them, with a router whose
// clock the test moves.
type quarry struct {
	*lab
	random *rand.Rand
	naive  *naive
	files  []labFile

	mu      sync.Mutex // guards what follows
	clock   time.Time
	release map[string]chan struct{} // by name of the build
	began   chan quarryBuild
	running []*quarryBuild
	idle    []*labClient
}

// quarryBuild is a build that was asked for.
type quarryBuild struct {
	name, builder string
	done          chan struct{}
	result        *nix.BuildResult
	err           error
	client        *labClient
}

func newQuarry(t *testing.T) *quarry {
	t.Helper()
	q := &quarry{random: rand.New(rand.NewPCG(7, 7)), naive: newNaive(quarryBuilders), clock: townTime(),
		release: map[string]chan struct{}{}, began: make(chan quarryBuild, 1)}
	var builders []*labBuilder
	for i := range quarryBuilders {
		b := newLabBuilder(quarryBuilders[i].name)
		b.systems, b.maxJobs, b.settings = strings.Join(quarryBuilders[i].systems, ", "), quarryBuilders[i].slots, quarryBuilders[i].settings()
		b.build = q.build
		builders = append(builders, b)
	}
	q.lab = newLabOf(t, labPolicy{extra: `
scheduling:
  startup_grace: 0s
  soft_features: [big-parallel]
  needs: [{attribute: memGiB, amount_of: mem}]
`}, builders...)
	q.proxy.router = route.New(route.Options{Now: q.now})
	q.proxy.builds.router = q.proxy.router
	q.proxy.apply(q.proxy.policy.Current())
	// Fewer bytes than from which on the bandwidth is learned.
	for i := range 12 {
		q.files = append(q.files, newLabFile(labPath(fmt.Sprint("input-", i)), strings.Repeat("x", 1+q.random.IntN(300_000))))
	}
	c := q.client("alice")
	if err := c.upload(t.Context(), q.files...); err != nil {
		t.Fatal(err)
	}
	q.idle = append(q.idle, c)
	return q
}

func (q *quarry) now() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.clock
}

func (q *quarry) pass(d time.Duration) {
	q.mu.Lock()
	q.clock = q.clock.Add(d)
	q.mu.Unlock()
	q.proxy.router.Recheck()
}

// build is that of all builders: it goes on until it is released.
func (q *quarry) build(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
	name, _ := drv.Lookup("name")
	q.mu.Lock()
	release := q.release[name]
	q.mu.Unlock()
	select {
	case q.began <- quarryBuild{name: name, builder: b.name}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-release:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return makeOutputs(ctx, b, log, drv)
}

// derivation makes a random one, and what the naive ranking knows of it.
func (q *quarry) derivation(n int) (string, *nix.Derivation, naiveJob) {
	pick := func(of ...string) string { return of[q.random.IntN(len(of))] }
	name := fmt.Sprintf("job%s-%d", pick("a", "b", "c", "d", "e"), n)
	job := naiveJob{system: pick("x86_64-linux", "x86_64-linux", "x86_64-linux", "aarch64-linux", "i686-linux", "riscv64-linux"), soft: []string{"big-parallel"}}
	for _, f := range []string{"kvm", "big-parallel", "benchmark"} {
		if q.random.IntN(3) == 0 {
			job.features = append(job.features, f)
		}
	}
	drv := &nix.Derivation{BasicDerivation: nix.BasicDerivation{
		Outputs: []nix.DerivationOutput{{Name: "out", Path: labPath(name)}}, Platform: job.system, Builder: "/bin/sh",
	}}
	if q.random.IntN(4) == 0 {
		job.mem = int64(1 + q.random.IntN(40))
		drv.Env = append(drv.Env, nix.EnvVar{Name: "memGiB", Value: strconv.FormatInt(job.mem, 10)})
	}
	drv.Env = append(drv.Env, nix.EnvVar{Name: "name", Value: name}, nix.EnvVar{Name: "requiredSystemFeatures", Value: strings.Join(job.features, " ")})
	job.inputs = map[string]int64{}
	for range q.random.IntN(4) {
		f := q.files[q.random.IntN(len(q.files))]
		if _, there := job.inputs[f.info.Path.String()]; !there {
			drv.InputSrcs = append(drv.InputSrcs, f.info.Path)
			job.inputs[f.info.Path.String()] = int64(f.info.NarSize)
		}
	}
	nix.SortPaths(drv.InputSrcs)
	return name, drv, job
}

// explain asks twice, as a person and as a program.
func (q *quarry) explain(name string, drv *nix.Derivation) (text string, a explainAnswer) {
	q.Helper()
	question, err := json.Marshal(Question{Principal: "alice", Name: name, Derivation: []byte(drv.ATerm())})
	if err != nil {
		q.Fatal(err)
	}
	var forPeople, forPrograms bytes.Buffer
	if err := q.proxy.AskAdmin(q.Context(), &forPeople, []string{"explain", string(question)}, Look{}); err != nil {
		q.Fatal(err)
	}
	if err := q.proxy.AskAdmin(q.Context(), &forPrograms, []string{"explain", string(question), "--json"}, Look{}); err != nil {
		q.Fatal(err)
	}
	if err := json.Unmarshal(forPrograms.Bytes(), &a); err != nil {
		q.Fatal(err)
	}
	return forPeople.String(), a
}

// ask has a derivation built, beside the test.
func (q *quarry) ask(name string, drv *nix.Derivation) *quarryBuild {
	q.Helper()
	path, err := derivationPath(name, []byte(drv.ATerm()), drv)
	if err != nil {
		q.Fatal(err)
	}
	b := &quarryBuild{name: name, done: make(chan struct{})}
	if len(q.idle) == 0 {
		q.idle = append(q.idle, q.client("alice"))
	}
	b.client, q.idle = q.idle[0], q.idle[1:]
	q.mu.Lock()
	q.release[name] = make(chan struct{})
	q.mu.Unlock()
	go func() {
		defer close(b.done)
		b.result, b.err = b.client.BuildDerivation(q.Context(), nix.Discard, path, &drv.BasicDerivation, nix.BuildNormal)
	}()
	return b
}

// begins waits until a build began, and says where.
func (q *quarry) begins(b *quarryBuild) string {
	q.Helper()
	select {
	case began := <-q.began:
		if began.name != b.name {
			q.Fatalf("%s began, not %s", began.name, b.name)
		}
		b.builder = began.builder
		q.running = append(q.running, b)
	case <-b.done:
		q.Fatalf("build %s ended before it began: %+v, %v", b.name, b.result, b.err)
	}
	return b.builder
}

// end lets a build that runs end well.
func (q *quarry) end(i int) {
	q.Helper()
	b := q.running[i]
	q.running = slices.Delete(q.running, i, i+1)
	q.mu.Lock()
	close(q.release[b.name])
	q.mu.Unlock()
	<-b.done
	if b.err != nil || !b.result.Status.Success() {
		q.Fatalf("build %s: %+v, %v", b.name, b.result, b.err)
	}
	q.naive.ended(b.name)
	q.idle = append(q.idle, b.client)
}

// waits waits until a build waits for a builder.
func (q *quarry) waits(b *quarryBuild) {
	q.Helper()
	for len(q.proxy.router.Status().Queue) == 0 {
		select {
		case began := <-q.began:
			q.Fatalf("%s began on %s, though it was to wait", began.name, began.builder)
		case <-b.done:
			q.Fatalf("build %s ended: %+v, %v", b.name, b.result, b.err)
		case <-time.After(time.Millisecond):
		}
	}
}

var goesTo = regexp.MustCompile(`(?m)^a '.*' with features \{.*\}: goes to (\S+)$`)

// Guards against an explanation that is not the decision: what explain prints is
// compared with the builder on which each of 200 builds then really runs, and its
// order of builders with a ranking that shares no code with the router. Systems,
// features, needs, inputs and what runs meanwhile are random.
func TestExplainNamesTheBuilderThatRuns(t *testing.T) {
	const wanted = 200
	q := newQuarry(t)
	ran, waited, nobody := 0, 0, 0
	ranOn := map[string]int{}
	for n := 0; ran < wanted; n++ {
		if n > 20*wanted {
			t.Fatalf("only %d of %d builds found a place", ran, n)
		}
		q.pass(time.Duration(q.random.IntN(15_000)) * time.Millisecond)
		for len(q.running) > 0 && q.random.IntN(5) < 2 {
			q.end(q.random.IntN(len(q.running)))
		}
		name, drv, job := q.derivation(n)
		text, a := q.explain(name, drv)
		q.naive.agrees(t, text, a.Ranking, &job, q.now(), q.proxy.router.Status().Builders)
		b := q.ask(name, drv)
		said := goesTo.FindStringSubmatch(text)
		switch {
		case said != nil:
			if got := q.begins(b); got != said[1] || got != a.Ranking.Builder {
				t.Fatalf("build %d ran on %s:\n%s", n, got, text)
			}
			q.naive.began(name, b.builder, &job, q.now())
			ran++
			ranOn[b.builder]++
		case strings.Contains(text, ": no builder can run it\n"):
			<-b.done
			if b.err != nil || b.result.Status.Success() {
				t.Fatalf("build %d: %+v, %v, explained as:\n%s", n, b.result, b.err, text)
			}
			for _, c := range a.Ranking.Builders {
				if line := "  " + c.Name + ": " + c.Reason + "\n"; !strings.Contains(b.result.ErrorMsg+"\n", line) || !strings.Contains(text, line) {
					t.Fatalf("no %q in the failure or in the explanation:\n%s\n%s", line, b.result.ErrorMsg, text)
				}
			}
			q.idle = append(q.idle, b.client)
			nobody++
		default:
			q.waits(b)
			// The queue is empty before the next question, and nothing runs whose place was
			// planned otherwise than it was explained.
			q.endUntilItBegins(b, &job)
			q.end(len(q.running) - 1)
			waited++
		}
	}
	for len(q.running) > 0 {
		q.end(0)
	}
	t.Logf("%d builds ran where it was said, %v; %d waited, %d found no builder", ran, ranOn, waited, nobody)
	if waited < 10 || nobody < 10 || len(ranOn) < len(quarryBuilders) {
		t.Errorf("%d waited and %d found no builder, %v: the test shows too little", waited, nobody, ranOn)
	}
}

// endUntilItBegins ends what runs, one after the other, until a build that waits has
// its place.
func (q *quarry) endUntilItBegins(b *quarryBuild, job *naiveJob) {
	q.Helper()
	for {
		select {
		case began := <-q.began:
			b.builder = began.builder
			q.running = append(q.running, b)
			q.naive.began(b.name, b.builder, job, q.now())
			return
		case <-b.done:
			q.Fatalf("build %s ended: %+v, %v", b.name, b.result, b.err)
		case <-time.After(time.Millisecond):
		}
		if len(q.proxy.router.Status().Queue) > 0 && len(q.running) > 0 {
			q.end(0)
		}
	}
}
