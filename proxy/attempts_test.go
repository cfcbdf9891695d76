package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// labBuild is how a builder of a lab builds.
type labBuild = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error)

// fails is a build that its daemon says has failed.
func fails(status nix.BuildStatus, text string) labBuild {
	return func(context.Context, *labBuilder, nix.Logger, *nix.BasicDerivation) (*nix.BuildResult, error) {
		return nix.Failure(status, "%s", text), nil
	}
}

const diskFull = "error: writing to file: No space left on device"

// trouble is why the router sends no builds to a builder, "" if it does.
func (l *lab) trouble(builder string) string {
	for _, b := range l.proxy.router.Status().Builders {
		if b.Name == builder {
			return b.Trouble
		}
	}
	l.Fatalf("no builder %q", builder)
	return ""
}

// setScheduling changes the policy of a lab in which nothing runs yet, also to what a
// file may not say.
func (l *lab) setScheduling(change func(*policy.Scheduling)) {
	change(&l.proxy.policy.Current().Scheduling)
}

// repool gives the lab a pool of other options.
func (l *lab) repool(opts upstream.Options) {
	l.Helper()
	pool := upstream.NewPool(opts)
	pool.Update(l.proxy.policy.Current().Builders)
	if err := l.proxy.pool.Close(l.Context()); err != nil {
		l.Fatal(err)
	}
	l.proxy.pool, l.proxy.builds.pool = pool, pool
}

// Guards against a full disk, or whatever else is wrong with one machine, that fails a
// client's build while there is another machine, and against the next build that goes
// there and fails, too.
func TestBuilderThatFailsABuildMeansAnotherBuilder(t *testing.T) {
	for name, c := range map[string]struct {
		build labBuild
		// counts says that the builder gets no builds for a while.
		counts bool
	}{
		"full disk": {fails(nix.StatusMiscFailure, diskFull), true},
		"error of Nix": {func(context.Context, *labBuilder, nix.Logger, *nix.BasicDerivation) (*nix.BuildResult, error) {
			return nil, nix.Refuse(diskFull)
		}, true},
		"lost in between": {lose, true},
		"garbage":         {goMad, true},
		"lacks a feature": {fails(nix.StatusMiscFailure, "error: a 'x86_64-linux' with features {kvm} is required to build 'x', but I am a 'x86_64-linux' with features {}"), false},
		"another's bytes": {lie, true},
		"no output":       {forget, true},
	} {
		t.Run(name, func(t *testing.T) {
			b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
			b1.build = c.build
			l := newLab(t, b1, b2)
			alice := l.client("alice")
			var log lines
			result, err := alice.build(t.Context(), &log, "hello")
			mustSucceed(t, result, err)
			if got, err := alice.read(t.Context(), labPath("hello")); got != "built by b2" || err != nil {
				t.Errorf("output holds %q, %v", got, err)
			}
			if trouble := l.trouble("b1"); (trouble != "") != c.counts {
				t.Errorf("b1's trouble is %q", trouble)
			}
			if trouble := l.trouble("b2"); trouble != "" {
				t.Errorf("b2's trouble is %q", trouble)
			}
			if got := log.String(); strings.Count(got, "looking for another builder") != 1 || !strings.Contains(got, "builder 'b1': ") {
				t.Errorf("the client was told:\n%s", got)
			}
			records := l.log.records(t, "builder failed a build")
			if len(records) != 1 || records[0]["builder"] != "b1" || records[0]["reason"] == "" {
				t.Errorf("logged %v", records)
			}
		})
	}
}

// lose cuts the connections in the middle of a build.
func lose(ctx context.Context, b *labBuilder, _ nix.Logger, _ *nix.BasicDerivation) (*nix.BuildResult, error) {
	b.cut()
	<-ctx.Done()
	return nil, ctx.Err()
}

// goMad answers with bytes that mean nothing.
func goMad(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
	b.garbage.Store(true)
	return makeOutputs(ctx, b, log, drv)
}

// lie announces other bytes than it gives.
func lie(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
	f, other := newLabFile(drv.Outputs[0].Path, "announced"), newLabFile(drv.Outputs[0].Path, "delivered")
	b.put(labFile{info: f.info, nar: other.nar})
	return &nix.BuildResult{Status: nix.StatusBuilt}, nil
}

// forget builds nothing and says that it did.
func forget(context.Context, *labBuilder, nix.Logger, *nix.BasicDerivation) (*nix.BuildResult, error) {
	return &nix.BuildResult{Status: nix.StatusBuilt}, nil
}

// Guards against a build that goes round the whole fleet and fails everywhere, and
// against a failure of which nobody knows where it was.
func TestAttemptsAreCountedAndNamed(t *testing.T) {
	var all []*labBuilder
	for i := range 6 {
		b := newLabBuilder(fmt.Sprintf("b%d", i))
		b.build = fails(nix.StatusMiscFailure, diskFull)
		all = append(all, b)
	}
	l := newLab(t, all...)
	l.setScheduling(func(s *policy.Scheduling) { s.Attempts = 3 })
	var log lines
	result, err := l.client("alice").build(t.Context(), &log, "hello")
	if err != nil || result.Status.Success() {
		t.Fatalf("result %+v, %v", result, err)
	}
	tried := 0
	for _, b := range all {
		switch n := len(b.built()); {
		case n > 1:
			t.Errorf("%s was tried %d times", b.name, n)
		case n == 1:
			tried++
			if !strings.Contains(result.ErrorMsg, b.name+": writing to file: No space left on device, after") {
				t.Errorf("the failure does not name %s: %s", b.name, result.ErrorMsg)
			}
		}
	}
	if tried != 3 || len(l.log.records(t, "builder failed a build")) != 3 || strings.Count(log.String(), "looking for another builder") != 3 {
		t.Errorf("tried %d builders; the client was told:\n%s", tried, &log)
	}
}

// Guards against a garbage collector that is quicker than a build and fails it.
func TestInputThatABuilderLostIsSentAgain(t *testing.T) {
	for name, c := range map[string]struct {
		loses int // how often
		want  string
	}{"once": {1, "built by b1"}, "always": {100, "built by b2"}} {
		t.Run(name, func(t *testing.T) {
			b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
			input := newLabFile(labPath("input"), "source")
			left := c.loses
			b1.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
				if left--; left >= 0 {
					b.drop(input.info.Path)
					return nil, nix.Refuse("dependency '%s' of 'x.drv' does not exist, and substitution is disabled", input.info.Path)
				}
				return makeOutputs(ctx, b, log, drv)
			}
			l := newLab(t, b1, b2)
			alice := l.client("alice")
			if err := alice.upload(t.Context(), input); err != nil {
				t.Fatal(err)
			}
			var log lines
			result, err := alice.build(t.Context(), &log, "hello", input.info.Path)
			mustSucceed(t, result, err)
			if got, err := alice.read(t.Context(), labPath("hello")); got != c.want || err != nil {
				t.Errorf("output holds %q, %v", got, err)
			}
			if got := b1.sent(); len(got) != 2 {
				t.Errorf("b1 was sent %q", got)
			}
			if got := b1.rooted(); len(got) != 2 {
				t.Errorf("b1 was told to keep %q", got)
			}
			if trouble := l.trouble("b1"); trouble != "" {
				t.Errorf("b1's trouble is %q", trouble)
			}
			if !strings.Contains(log.String(), "sending it again") {
				t.Errorf("the client was told:\n%s", &log)
			}
		})
	}
}

// Guards against a disk that is full and empty again when the daemon looks, and
// against a build that runs everywhere since it prints what such a disk would make it.
func TestDoubtfulFailureIsConfirmedByOneOtherBuilder(t *testing.T) {
	const text = "builder for 'x.drv' failed with exit code 1;\nlast 1 log lines:\n> cc: x.o: No space left on device"
	doubtful := fails(nix.StatusPermanentFailure, text)
	for name, c := range map[string]struct {
		builds []labBuild
		ok     bool
		ran    int
	}{
		"the builder's": {[]labBuild{doubtful, nil}, true, 2},
		"the build's":   {[]labBuild{doubtful, doubtful, doubtful}, false, 2},
		"one builder":   {[]labBuild{doubtful}, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var all []*labBuilder
			for i, build := range c.builds {
				b := newLabBuilder(fmt.Sprintf("b%d", i))
				b.build = build
				all = append(all, b)
			}
			l := newLab(t, all...)
			result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
			if err != nil || result.Status.Success() != c.ok {
				t.Fatalf("result %+v, %v", result, err)
			}
			if !c.ok && (result.Status != nix.StatusPermanentFailure || result.ErrorMsg != text) {
				t.Errorf("result %+v", result)
			}
			ran := 0
			for _, b := range all {
				ran += len(b.built())
				if trouble := l.trouble(b.name); trouble != "" {
					t.Errorf("%s's trouble is %q", b.name, trouble)
				}
			}
			if ran != c.ran {
				t.Errorf("it ran %d times", ran)
			}
		})
	}
}

// Guards against a build that fails since a builder was away for a moment, and against
// one that asks for it all the time meanwhile: here the router is never told.
func TestBuilderThatIsNotReachedIsNoAttempt(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	l.setScheduling(func(s *policy.Scheduling) { s.Attempts = 1 })
	const away = 4
	dials := 0 // one at a time
	l.repool(upstream.Options{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials++; dials <= away {
				return nil, errors.New("no route")
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		BackOffMin: 200 * time.Millisecond, BackOffMax: 200 * time.Millisecond,
	})
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	if n := len(l.log.records(t, "builder failed a build")); n < 1 || n > 8 {
		t.Errorf("it was asked for a session %d times in vain", n)
	}
}

// Guards against a client's own decision that counts against a builder.
func TestCancelledBuildIsNobodysFault(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(ctx context.Context, _ *labBuilder, _ nix.Logger, _ *nix.BasicDerivation) (*nix.BuildResult, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l := newLab(t, b)
	alice := l.client("alice")
	go alice.build(t.Context(), nix.Discard, "endless")
	eventually(t, "the build runs", func() bool { return len(b.built()) == 1 })
	alice.hangUp()
	eventually(t, "it has ended", func() bool { return b.endedBuilds() == 1 && l.proxy.router.Status().Builders[0].Busy == 0 })
	if trouble := l.trouble("b1"); trouble != "" {
		t.Errorf("b1's trouble is %q", trouble)
	}
}

// Guards against a builder that is blamed for a connection that died while nobody used
// it, and against one that is tried for ever because it never is.
func TestSessionThatDiedBeforeIsNoAttemptOnce(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	path, drv := labDrv("hello")
	o := &order{principal: l.principal("alice"), drvPath: path, drv: drv, system: "x86_64-linux", log: l.proxy.log}
	log := newBuildLog(t.TempDir(), 0)
	defer log.free()
	tr := l.proxy.builds.newTries(o, log)
	lease, err := l.proxy.router.Acquire(t.Context(), tr.request(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	stale := outcome{blame: blameBuilder, stale: true, reason: "connection lost",
		err: &upstream.Error{Builder: "b1", Kind: upstream.Lost, Err: errors.New("connection lost")}}
	tr.failed(tr.newAttempt(lease), stale)
	if len(tr.trail) != 0 || len(tr.request().Exclude) != 0 || len(tr.request().Avoid) != 0 || l.trouble("b1") != "" {
		t.Errorf("the first counts: %+v, %+v, %q", tr.trail, tr.request(), l.trouble("b1"))
	}
	patience := tr.request().Patience
	tr.failed(tr.newAttempt(lease), stale)
	if tr.request().Patience <= patience {
		t.Error("the order does not wait until its builder is back")
	}
	if len(tr.trail) != 1 || len(tr.request().Avoid) != 1 || l.trouble("b1") == "" {
		t.Errorf("the second does not count: %+v, %+v", tr.trail, tr.request())
	}
	tr.failed(tr.newAttempt(lease), stale)
	if got := tr.request().Exclude; len(got) != 1 || got[0].Builder != "b1" {
		t.Errorf("after three %+v", got)
	}
}

// Guards against a build that waits without a word for the locks that an earlier one
// left behind, and against a builder that is lost for its derivation for ever.
func TestSessionThatDoesNotEndMakesItsBuilderSuspect(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	stuck := make(chan struct{})
	defer close(stuck)
	b1.build = func(context.Context, *labBuilder, nix.Logger, *nix.BasicDerivation) (*nix.BuildResult, error) {
		<-stuck // whatever its client does
		return nil, errors.New("ended")
	}
	l := newLab(t, b1, b2)
	l.repool(upstream.Options{OnState: l.proxy.router.SetUp, EndTimeout: 100 * time.Millisecond})
	alice := l.client("alice")
	go alice.build(t.Context(), nix.Discard, "hello")
	eventually(t, "the build runs", func() bool { return len(b1.built()) == 1 })
	alice.hangUp()
	eventually(t, "the builder counts as faulty", func() bool { return strings.Contains(l.trouble("b1"), "did not end") })
	avoid := func(name string) []route.Exclusion {
		path, drv := labDrv(name)
		o := &order{principal: l.principal("alice"), drvPath: path, drv: drv, system: "x86_64-linux", log: l.proxy.log}
		return l.proxy.builds.newTries(o, nil).request().Avoid
	}
	if got := avoid("hello"); len(got) != 1 || got[0].Builder != "b1" {
		t.Errorf("for its derivation %+v are avoided", got)
	}
	if got := avoid("other"); len(got) != 0 {
		t.Errorf("for others %+v are avoided", got)
	}
}

// Guards against a build that fails since the only builder that can run it was away for
// a moment.
func TestOnlyBuilderIsTriedOnceMore(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		if len(b.built()) == 1 {
			return lose(ctx, b, log, drv)
		}
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLab(t, b)
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	mustSucceed(t, result, err)
	if n := len(b.built()); n != 2 {
		t.Errorf("it ran %d times", n)
	}
}

// Guards against a build that goes to a builder that fails it again and again.
func TestBuilderThatIsLostTwiceIsGivenUp(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = lose
	l := newLab(t, b)
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	if err != nil || result.Status.Success() || strings.Count(result.ErrorMsg, "b1: connection lost") < 2 {
		t.Errorf("result %+v, %v", result, err)
	}
	if n := len(b.built()); n != 2 {
		t.Errorf("it ran %d times", n)
	}
}
