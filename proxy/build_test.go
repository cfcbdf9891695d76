package proxy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

// eventually waits for what another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never happened: %s", what)
}

func mustSucceed(t *testing.T, result *nix.BuildResult, err error) {
	t.Helper()
	if err != nil || !result.Status.Success() {
		t.Fatalf("build: %+v, %v", result, err)
	}
}

// Guards against builders that are asked for what is known: after one build its
// outputs are there for everybody of the domain, with every builder gone, and for
// nobody else.
func TestOutputsAreKeptForTheDomain(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	input := newLabFile(labPath("input"), "source")
	alice := l.client("alice")
	if err := alice.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	if got, err := alice.read(t.Context(), labPath("hello")); got != "built by b1" || err != nil {
		t.Errorf("output holds %q, %v", got, err)
	}
	if got := b.sent(); !slices.Equal(got, []string{"input"}) {
		t.Errorf("the builder was sent %q", got)
	}
	b.die()
	bob := l.client("bob")
	result, err = bob.build(t.Context(), nix.Discard, "hello", input.info.Path)
	mustSucceed(t, result, err)
	if got, err := bob.read(t.Context(), labPath("hello")); got != "built by b1" || err != nil || result.Status != nix.StatusAlreadyValid {
		t.Errorf("second client: %s, %q, %v", result.Status, got, err)
	}
	eve := l.client("eve")
	if _, err := eve.read(t.Context(), labPath("hello")); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("another domain: %v", err)
	}
	if result, err := eve.build(t.Context(), nix.Discard, "hello"); err != nil || !strings.Contains(result.ErrorMsg, "domain 'other' has no builder") {
		t.Errorf("another domain's build: %+v, %v", result, err)
	}
}

// Guards against a builder that dies and takes a client's build with it.
func TestBuilderLostInABuildMeansAnotherBuilder(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	b1.build = func(ctx context.Context, b *labBuilder, _ nix.Logger, _ *nix.BasicDerivation) (*nix.BuildResult, error) {
		b.die()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l := newLab(t, b1, b2)
	var log lines
	alice := l.client("alice")
	result, err := alice.build(t.Context(), &log, "hello")
	mustSucceed(t, result, err)
	if got, err := alice.read(t.Context(), labPath("hello")); got != "built by b2" || err != nil {
		t.Errorf("output holds %q, %v", got, err)
	}
	if strings.Contains(log.String(), "builder 'b1': builder 'b1'") {
		t.Errorf("the client was told twice in a line which builder was lost:\n%s", &log)
	}
	if !strings.Contains(log.String(), "builder 'b1'") || !strings.Contains(log.String(), "building '"+labPath("hello.drv").String()+"' on 'b2'") {
		t.Errorf("the client was told:\n%s", &log)
	}
}

// Guards against a failed build that is taken for a broken builder and tried
// elsewhere.
func TestFailedBuildIsAResult(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	for _, b := range []*labBuilder{b1, b2} {
		b.build = func(context.Context, *labBuilder, nix.Logger, *nix.BasicDerivation) (*nix.BuildResult, error) {
			return nix.Failure(nix.StatusPermanentFailure, "builder failed with exit code 5"), nil
		}
	}
	l := newLab(t, b1, b2)
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	if err != nil || result.Status != nix.StatusPermanentFailure || !strings.Contains(result.ErrorMsg, "exit code 5") {
		t.Errorf("result %+v, %v", result, err)
	}
	if n := len(b1.built()) + len(b2.built()); n != 1 {
		t.Errorf("it was tried %d times", n)
	}
}

// Guards against one client's patience that holds or ends another's build.
func TestEqualBuildsRunOnceForAsLongAsSomebodyWaits(t *testing.T) {
	b := newLabBuilder("b1")
	b.maxJobs = 4
	release := make(chan struct{})
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		nix.Line(log, "early line")
		select {
		case <-release:
			return makeOutputs(ctx, b, log, drv)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l := newLab(t, b)
	first, second := l.client("alice"), l.client("bob")
	go first.build(t.Context(), nix.Discard, "hello")
	eventually(t, "the first build runs", func() bool { return len(b.built()) == 1 })
	var log lines
	done := make(chan error, 1)
	go func() {
		result, err := second.build(t.Context(), &log, "hello")
		if err == nil && !result.Status.Success() {
			err = errors.New(result.ErrorMsg)
		}
		done <- err
	}()
	eventually(t, "the second hears the log from its start", func() bool { return strings.Contains(log.String(), "early line") })
	first.hangUp()
	select {
	case err := <-done:
		t.Fatalf("the second's build ended with the first client: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("second client: %v", err)
	}
	if got := b.built(); len(got) != 1 {
		t.Errorf("built %d times", len(got))
	}
}

// Guards against builds that go on for clients that are gone, and hold a slot.
func TestBuildEndsWithItsLastClient(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		if drv.Env[0].Value == "next" {
			return makeOutputs(ctx, b, log, drv)
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l := newLab(t, b)
	alice := l.client("alice")
	go alice.build(t.Context(), nix.Discard, "endless")
	eventually(t, "the build runs", func() bool { return len(b.built()) == 1 })
	alice.hangUp()
	eventually(t, "the builder was told", func() bool { return b.endedBuilds() == 1 })
	result, err := l.client("bob").build(t.Context(), nix.Discard, "next")
	mustSucceed(t, result, err)
}

// Guards against an output that is published, or ends well for a reader, although
// its bytes are not those that the builder announced.
func TestOutputWithOtherBytesIsNeverPublished(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(_ context.Context, b *labBuilder, _ nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		f, other := newLabFile(drv.Outputs[0].Path, "announced"), newLabFile(drv.Outputs[0].Path, "delivered")
		b.put(labFile{info: f.info, nar: other.nar})
		return &nix.BuildResult{Status: nix.StatusBuilt, Outputs: []nix.BuiltOutput{{Name: "out", Path: drv.Outputs[0].Path}}}, nil
	}
	l := newLab(t, b)
	alice := l.client("alice")
	if _, err := alice.build(t.Context(), nix.Discard, "hello"); err != nil {
		t.Fatal(err)
	}
	if got, err := alice.read(t.Context(), labPath("hello")); err == nil {
		t.Errorf("a reader got %q", got)
	}
	bob := l.client("bob")
	eventually(t, "the path is gone", func() bool {
		_, err := bob.QueryPathInfo(t.Context(), labPath("hello"))
		return errors.Is(err, nix.ErrNotFound)
	})
}

// Guards against a build from inputs that somebody planted on a builder.
func TestStrictBuilderWithOtherBytesIsNotUsed(t *testing.T) {
	b := newLabBuilder("b1")
	b.strict = true
	l := newLab(t, b)
	b.put(newLabFile(labPath("input"), "planted"))
	alice := l.client("alice")
	input := newLabFile(labPath("input"), "ours")
	if err := alice.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", input.info.Path)
	if err != nil || result.Status.Success() || !strings.Contains(result.ErrorMsg, "with other content") {
		t.Errorf("result %+v, %v", result, err)
	}
	if got := b.built(); len(got) != 0 {
		t.Errorf("built %q", got)
	}
}

// Guards against an account that may do less than it was given, and against the
// failure that nobody can explain.
func TestUntrustedAccountGetsNoBuildAndIsNamed(t *testing.T) {
	b := newLabBuilder("b1")
	b.trust = nix.NotTrusted
	l := newLab(t, b)
	result, err := l.client("alice").build(t.Context(), nix.Discard, "hello")
	if err != nil || result.Status.Success() || !strings.Contains(result.ErrorMsg, "account 'nix' on builder 'b1'") ||
		!strings.Contains(result.ErrorMsg, "trusted-users") {
		t.Errorf("result %+v, %v", result, err)
	}
	if got := b.built(); len(got) != 0 {
		t.Errorf("built %q", got)
	}
}

// Guards against readers who write: a build request and an upload are errors of
// the operation, not failed builds, which clients told "not trusted" never look at.
func TestReaderMayNeitherBuildNorUpload(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	reader := l.client("reader")
	var remote *nix.RemoteError
	if _, err := reader.build(t.Context(), nix.Discard, "hello"); !errors.As(err, &remote) || !strings.Contains(remote.Message, "role read") {
		t.Errorf("build: %v", err)
	}
	if err := reader.upload(t.Context(), newLabFile(labPath("x"), "x")); !errors.As(err, &remote) || !strings.Contains(remote.Message, "role read") {
		t.Errorf("upload: %v", err)
	}
	if _, err := reader.QueryPathInfo(t.Context(), labPath("x")); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("the session is not usable any more: %v", err)
	}
	if got := b.built(); len(got) != 0 {
		t.Errorf("built %q", got)
	}
}
