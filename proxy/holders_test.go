package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
)

// hasCached waits until an output is whole in the cache of the default domain.
func (l *lab) hasCached(name string) {
	l.Helper()
	eventually(l, name+" is in the cache", func() bool {
		provenance, err := l.proxy.cache.QueryProvenance("default", labPath(name))
		return err == nil && provenance != cache.Claimed
	})
}

// Guards against a check that is answered from what is known, that runs where
// there is nothing to compare with, or that changes what is known.
func TestChecksRunWhereTheOutputIs(t *testing.T) {
	b1, b2, b3 := newLabBuilder("b1"), newLabBuilder("b2"), newLabBuilder("b3")
	l := newLab(t, b1, b2, b3)
	alice := l.client("alice")
	b3.put(newLabFile(labPath("out"), "built by b3")) // the last that would be chosen
	if err := alice.upload(t.Context(), newLabFile(labPath("out"), "ours")); err != nil {
		t.Fatal(err)
	}
	var log lines
	for range 2 {
		result, err := alice.buildIn(t.Context(), nix.BuildCheck, &log, "out")
		mustSucceed(t, result, err)
		if len(result.Outputs) != 1 || result.Outputs[0].Path != labPath("out") {
			t.Errorf("outputs %+v", result.Outputs)
		}
	}
	if got := b3.builtIn(); !slices.Equal(got, []nix.BuildMode{nix.BuildCheck, nix.BuildCheck}) {
		t.Errorf("the holder built in modes %v", got)
	}
	if n := len(b1.built()) + len(b2.built()); n != 0 {
		t.Errorf("%d builds elsewhere", n)
	}
	if !strings.Contains(log.String(), "checking outputs of '"+labPath("out.drv").String()+"' on 'b3'") {
		t.Errorf("the client was told:\n%s", &log)
	}
	if got, err := alice.read(t.Context(), labPath("out")); got != "ours" || err != nil {
		t.Errorf("the cache holds %q, %v", got, err)
	}
}

// Guards against a check that fails because no builder has the output any more,
// although the proxy has it.
func TestOutputsThatNoBuilderHoldsAreSentToBeChecked(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, b1, b2)
	alice := l.client("alice")
	lib, out := newLabFile(labPath("lib"), "lib"), newLabFile(labPath("out"), "ours", labPath("lib"))
	if err := alice.upload(t.Context(), lib, out); err != nil {
		t.Fatal(err)
	}
	result, err := alice.buildIn(t.Context(), nix.BuildCheck, nix.Discard, "out")
	mustSucceed(t, result, err)
	sent := append(b1.sent(), b2.sent()...)
	if !slices.Equal(sent, []string{"lib", "out"}) {
		t.Errorf("sent %q", sent)
	}

	result, err = alice.buildIn(t.Context(), nix.BuildCheck, nix.Discard, "nowhere")
	if err != nil || result.Status != nix.StatusMiscFailure || !strings.Contains(result.ErrorMsg, "so checking is not possible") ||
		!strings.Contains(result.ErrorMsg, "b1: does not hold the outputs\n  b2: ") {
		t.Errorf("an output that is nowhere: %+v, %v", result, err)
	}
	if n := len(b1.built()) + len(b2.built()); n != 1 {
		t.Errorf("%d builds were begun", n)
	}
}

// Guards against a check that ends with the one builder that holds the output.
func TestCheckGoesOnWhenTheHolderIsLost(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	b1.build = func(ctx context.Context, b *labBuilder, _ nix.Logger, _ *nix.BasicDerivation) (*nix.BuildResult, error) {
		b.die()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l := newLab(t, b1, b2)
	alice := l.client("alice")
	out := newLabFile(labPath("out"), "ours")
	b1.put(out)
	if err := alice.upload(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	var log lines
	result, err := alice.buildIn(t.Context(), nix.BuildCheck, &log, "out")
	mustSucceed(t, result, err)
	if !slices.Equal(b2.sent(), []string{"out"}) || !strings.Contains(log.String(), "sending them to another one") {
		t.Errorf("the other builder was sent %q, the client was told:\n%s", b2.sent(), &log)
	}
}

// Guards against a check that is sent where nobody has a word for it.
func TestChecksDoNotGoToBuildersOfTheServeProtocol(t *testing.T) {
	b := newLabBuilder("b1")
	b.protocol = "ssh"
	l := newLab(t, b)
	result, err := l.client("alice").buildIn(t.Context(), nix.BuildCheck, nix.Discard, "out")
	if err != nil || result.Status.Success() || !strings.Contains(result.ErrorMsg, "b1: excluded: its protocol (ssh) knows no builds that check") {
		t.Errorf("result %+v, %v", result, err)
	}
}

// Guards against a builder that says nothing and holds up a check.
func TestSilentBuildersAreNotAskedForLong(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	b1.mute = true
	l := newLab(t, b1, b2)
	alice := l.client("alice")
	out := newLabFile(labPath("out"), "ours")
	b1.put(out)
	b2.put(out)
	began := time.Now()
	result, err := alice.buildIn(t.Context(), nix.BuildCheck, nix.Discard, "out")
	mustSucceed(t, result, err)
	if took := time.Since(began); took > 4*time.Second || len(b2.built()) != 1 {
		t.Errorf("checked after %v by %q", took, b2.built())
	}
}

// Guards against a difference that is called a broken builder, or told in other
// words than Nix's.
func TestOutputsThatDifferAreAResult(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(_ context.Context, _ *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		return nix.Failure(nix.StatusNotDeterministic, "derivation '%s' may not be deterministic: output '%s' differs", drv.Env[0].Value, drv.Outputs[0].Path), nil
	}
	l := newLab(t, b)
	alice := l.client("alice")
	b.put(newLabFile(labPath("out"), "theirs"))
	result, err := alice.buildIn(t.Context(), nix.BuildCheck, nix.Discard, "out")
	want := fmt.Sprintf("derivation 'out' may not be deterministic: output '%s' differs", labPath("out"))
	if err != nil || result.Status != nix.StatusNotDeterministic || result.ErrorMsg != want {
		t.Errorf("result %+v, %v", result, err)
	}
}

// Guards against a check that gets the result of a build that runs already, of
// which nobody compares the output.
func TestChecksDoNotAttachToBuilds(t *testing.T) {
	b := newLabBuilder("b1")
	b.maxJobs = 2
	release := make(chan struct{})
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		select {
		case <-release:
			return makeOutputs(ctx, b, log, drv)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l := newLab(t, b)
	b.put(newLabFile(labPath("out"), "theirs"))
	go l.client("alice").build(t.Context(), nix.Discard, "out")
	eventually(t, "the build runs", func() bool { return len(b.built()) == 1 })
	go l.client("bob").buildIn(t.Context(), nix.BuildCheck, nix.Discard, "out")
	eventually(t, "the check runs beside it", func() bool {
		return slices.Equal(b.builtIn(), []nix.BuildMode{nix.BuildNormal, nix.BuildCheck})
	})
	close(release)
}

// Guards against builds of other modes for whoever may build.
func TestCheckAndRepairBuildsAreForThoseWhoMay(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	b.put(newLabFile(labPath("out"), "theirs"))
	l.principal("bob").CheckBuilds = false
	_, err := l.client("bob").buildIn(t.Context(), nix.BuildCheck, nix.Discard, "out")
	wantRefusal(t, "a check", err, "check_builds: allow", `"bob"`)
	_, err = l.client("bob").buildIn(t.Context(), nix.BuildRepair, nix.Discard, "out")
	wantRefusal(t, "a repair", err, "repair_builds: allow", `"bob"`)
	_, err = l.client("reader").buildIn(t.Context(), nix.BuildCheck, nix.Discard, "out")
	wantRefusal(t, "a reader's check", err, "role read")
	_, err = l.client("alice").BuildPathsWithResults(t.Context(), nix.Discard, []nix.DerivedPath{{Path: labPath("out")}}, nix.BuildRepair)
	wantRefusal(t, "a path that is not a derivation", err, "is not repaired by itself")
	path, drv := labDrv("floating")
	drv.Outputs = []nix.DerivationOutput{{Name: "out", HashAlgo: "r:sha256"}}
	_, err = l.client("alice").BuildDerivation(t.Context(), nix.Discard, path, drv, nix.BuildCheck)
	wantRefusal(t, "an output without a path", err, "have no path before they are built")
	if got := b.built(); len(got) != 0 {
		t.Errorf("built %q", got)
	}
}

// Guards against a repair that leaves the proxy with a path that it lost, or that
// changes bytes which were answered already.
func TestRepairedOutputsAreReadAgain(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	alice := l.client("alice")
	for _, name := range []string{"same", "other"} {
		result, err := alice.build(t.Context(), nix.Discard, name)
		mustSucceed(t, result, err)
		l.hasCached(name)
	}
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		if drv.Env[0].Value == "same" {
			return makeOutputs(ctx, b, log, drv)
		}
		b.put(newLabFile(drv.Outputs[0].Path, "built in another way"))
		return &nix.BuildResult{Status: nix.StatusBuilt}, nil
	}
	for _, name := range []string{"same", "other"} {
		result, err := alice.buildIn(t.Context(), nix.BuildRepair, nix.Discard, name)
		mustSucceed(t, result, err)
		if got, err := alice.read(t.Context(), labPath(name)); got != "built by b1" || err != nil {
			t.Errorf("%s: the cache holds %q, %v", name, got, err)
		}
	}
	if got := b.builtIn(); !slices.Equal(got[2:], []nix.BuildMode{nix.BuildRepair, nix.BuildRepair}) {
		t.Errorf("modes %v", got)
	}
	const differs = "repaired output differs"
	eventually(t, "the difference is logged", func() bool { return strings.Contains(l.log.String(), differs) })
	if n := strings.Count(l.log.String(), differs); n != 1 {
		t.Errorf("logged %d times:\n%s", n, l.log)
	}
}
