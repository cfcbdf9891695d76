package proxy

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

// hungLab is a lab whose proxy is impatient.
func hungLab(t *testing.T, builders ...*labBuilder) *lab {
	t.Helper()
	l := newLab(t, builders...)
	l.setScheduling(func(s *policy.Scheduling) { s.HungAfter = 300 * time.Millisecond })
	l.repool(upstream.Options{
		OnState: l.proxy.router.SetUp, ProofAfter: 50 * time.Millisecond, ProofTimeout: 200 * time.Millisecond,
		HandshakeTimeout: 300 * time.Millisecond, SessionTimeout: 300 * time.Millisecond, EndTimeout: 200 * time.Millisecond,
		BackOffMin: 100 * time.Millisecond, BackOffMax: 100 * time.Millisecond,
	})
	return l
}

// waits is a build that says that it runs, and goes on when it may.
func waits(may <-chan struct{}) labBuild {
	return func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		nix.Line(log, "begins on "+b.name)
		select {
		case <-may:
			nix.Line(log, "ends on "+b.name)
			return makeOutputs(ctx, b, log, drv)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Guards against builds that hang with their machine: keep-alive needs a minute, and
// the machine may come back never.
func TestBuildOnAMachineThatStopsIsCopied(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	never := make(chan struct{})
	b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		b.hang()
		return waits(never)(ctx, b, log, drv)
	}
	l := hungLab(t, b1, b2)
	alice := l.client("alice")
	var log lines
	result, err := alice.build(t.Context(), &log, "hello")
	mustSucceed(t, result, err)
	if got, err := alice.read(t.Context(), labPath("hello")); got != "built by b2" || err != nil {
		t.Errorf("output holds %q, %v", got, err)
	}
	if got := log.String(); !strings.Contains(got, "builder 'b1' has given no sign of life") || !strings.Contains(got, "the copy on 'b2' was first") {
		t.Errorf("the client was told:\n%s", got)
	}
	if trouble := l.trouble("b1"); !strings.Contains(trouble, "no sign of life") {
		t.Errorf("b1's trouble is %q", trouble)
	}
	eventually(t, "the slot of the hung builder is free", func() bool { return l.proxy.router.Status().Builders[0].Busy == 0 })
}

// Guards against the work of a machine that was away for a moment being lost, and
// against two copies that go on for ever or mix their lines.
func TestFirstCopyThatEndsIsTheAnswer(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	may, never := make(chan struct{}), make(chan struct{})
	b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		b.hang()
		return waits(may)(ctx, b, log, drv)
	}
	b2.build = waits(never)
	l := hungLab(t, b1, b2)
	alice := l.client("alice")
	var log lines
	type answer struct {
		result *nix.BuildResult
		err    error
	}
	done := make(chan answer)
	go func() {
		result, err := alice.build(t.Context(), &log, "hello")
		done <- answer{result, err}
	}()
	eventually(t, "the copy runs and is shown", func() bool { return strings.Contains(log.String(), "begins on b2") })
	b1.wake()
	eventually(t, "the first is seen to live", func() bool { return strings.Contains(log.String(), "'b1' answers again") })
	if strings.Contains(log.String(), "begins on b1") {
		t.Errorf("both copies are shown:\n%s", &log)
	}
	close(may)
	got := <-done
	mustSucceed(t, got.result, got.err)
	if text, err := alice.read(t.Context(), labPath("hello")); text != "built by b1" || err != nil {
		t.Errorf("output holds %q, %v", text, err)
	}
	eventually(t, "the other copy has ended", func() bool { return b2.endedBuilds() == 1 })
	said := strings.Split(log.String(), "\n")
	var order []string
	for _, line := range []string{"begins on b2", "the copy on 'b1' was first; the one on 'b2' is given up", "begins on b1", "ends on b1"} {
		if !slices.Contains(said, line) {
			t.Fatalf("the client was not told %q:\n%s", line, &log)
		}
		order = append(order, line)
	}
	if !slices.IsSortedFunc(order, func(a, b string) int { return slices.Index(said, a) - slices.Index(said, b) }) {
		t.Errorf("the client was told in another order:\n%s", &log)
	}
}

// Guards against a build that fails with its hung builder although its copy runs, and
// against a copy's failure that ends the one that has come back.
func TestFailedCopyLeavesTheOther(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	may, fail := make(chan struct{}), make(chan struct{})
	b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		b.hang()
		return waits(may)(ctx, b, log, drv)
	}
	b2.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		<-fail
		return fails(nix.StatusMiscFailure, diskFull)(ctx, b, log, drv)
	}
	l := hungLab(t, b1, b2)
	alice := l.client("alice")
	var log lines
	done := make(chan *nix.BuildResult)
	go func() {
		result, _ := alice.build(t.Context(), &log, "hello")
		done <- result
	}()
	eventually(t, "the copy runs", func() bool { return len(b2.built()) == 1 })
	close(fail)
	eventually(t, "the copy is given up", func() bool { return strings.Contains(log.String(), "builder 'b2': writing to file") })
	b1.wake()
	eventually(t, "the first is shown again", func() bool { return strings.Contains(log.String(), "begins on b1") })
	close(may)
	mustSucceed(t, <-done, nil)
	if text, err := alice.read(t.Context(), labPath("hello")); text != "built by b1" || err != nil {
		t.Errorf("output holds %q, %v", text, err)
	}
	if !strings.Contains(log.String(), "ends on b1") {
		t.Errorf("what the first said is not shown:\n%s", &log)
	}
}

// Guards against a machine that stops while inputs travel there, where no build
// runs that could be missed.
func TestMachineThatStopsDuringAnUploadIsCopied(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := hungLab(t, b1, b2)
	alice := l.client("alice")
	input := newLabFile(labPath("input"), strings.Repeat("many bytes ", 1<<20))
	if err := alice.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	b1.onValid = b1.hang
	result, err := alice.build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	if text, err := alice.read(t.Context(), labPath("hello")); text != "built by b2" || err != nil {
		t.Errorf("output holds %q, %v", text, err)
	}
}

// Guards against second copies of builds that are only silent.
func TestSilentBuildIsNotCopied(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	may := make(chan struct{})
	b1.build = waits(may)
	l := hungLab(t, b1, b2)
	time.AfterFunc(1200*time.Millisecond, func() { close(may) })
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	if n := len(b2.built()); n != 0 {
		t.Errorf("copied %d times", n)
	}
}

// hungAttempt is an order of which an attempt runs on the only builder.
func hungAttempt(t *testing.T) (*tries, *attempt) {
	t.Helper()
	l := newLab(t, newLabBuilder("b1"))
	path, drv := labDrv("hello")
	log := newBuildLog(t.TempDir(), 0)
	t.Cleanup(log.free)
	tr := l.proxy.builds.newTries(&order{principal: l.principal("alice"), drvPath: path, drv: drv, system: "x86_64-linux", log: l.proxy.log}, log)
	lease, err := l.proxy.router.Acquire(t.Context(), tr.request(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lease.Release)
	a := tr.newAttempt(lease)
	tr.running = append(tr.running, a)
	return tr, a
}

// Guards against a failure that the silence of a hung builder makes, in place of
// the result of the copy.
func TestSilenceOfAHungBuilderIsNoTimeOut(t *testing.T) {
	limit := &limitError{nix.StatusTimedOut, "timed out after 60 seconds of silence"}
	out := outcome{blame: blameBuild, err: limit, result: nix.Failure(limit.status, "%s", limit.text), reason: limit.text}
	tr, a := hungAttempt(t)
	a.hung = true
	if tr.ended(a, out); tr.answered != nil {
		t.Errorf("a hung builder's silence is the answer: %+v", tr.answered)
	}
	tr, a = hungAttempt(t)
	if tr.ended(a, out); tr.answered == nil {
		t.Error("a silent build is no answer")
	}
}

// Guards against a copy that begins beside the hung one, where its locks are.
func TestCopyRunsOnAnotherBuilder(t *testing.T) {
	tr, _ := hungAttempt(t)
	if got := tr.request().Exclude; len(got) != 1 || got[0].Builder != "b1" {
		t.Errorf("excluded are %+v", got)
	}
}

// Guards against progress bars that show the copy that is given up for ever.
func TestCopyThatIsGivenUpLeavesNothingOpen(t *testing.T) {
	tr, winner := hungAttempt(t)
	loser := tr.newAttempt(winner.lease)
	tr.running = append(tr.running, loser)
	loser.log.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 1, Type: nix.ActivityBuild})
	tr.ended(winner, outcome{result: &nix.BuildResult{Status: nix.StatusBuilt}})
	tr.log.finish()
	var got recorder
	tr.log.follow(t.Context(), &got, 0)
	checkActivities(t, got.messages)
}
