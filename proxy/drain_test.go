package proxy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// held is a build that waits for the test before it makes its outputs.
func held(release <-chan struct{}) func(context.Context, *labBuilder, nix.Logger, *nix.BasicDerivation) (*nix.BuildResult, error) {
	return func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		select {
		case <-release:
			return makeOutputs(ctx, b, log, drv)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// begin has a client build something, and tells how that ended.
func (l *lab) begin(principal, name string) (ended chan error) {
	l.Helper()
	c := l.client(principal)
	ended = make(chan error, 1)
	go func() {
		result, err := c.build(l.Context(), nix.Discard, name)
		if err == nil && !result.Status.Success() {
			err = errors.New(result.ErrorMsg)
		}
		if err == nil {
			_, err = c.read(l.Context(), labPath(name))
		}
		ended <- err
	}()
	return ended
}

func (b *labBuilder) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

func (b *labBuilder) dialled() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dials
}

// change drains or undrains.
func (l *lab) change(words ...string) string {
	l.Helper()
	answer, err := l.proxy.ChangeAdmin(l.Context(), "root", words)
	if err != nil {
		l.Fatalf("%q: %v", words, err)
	}
	return answer
}

// Guards against a drain that costs a running build, or its outputs, that leaves
// connections behind, or that lets new builds through.
func TestDrainedBuilderEndsWhatItRunsAndGetsNothingNew(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	release, read := make(chan struct{}), make(chan struct{})
	b1.build = held(release)
	b1.onNar = func(context.Context, nix.StorePath) { <-read }
	l := newLab(t, b1, b2)
	l.proxy.router.SetUp("b2", false, "not yet")
	running := l.begin("alice", "running")
	eventually(t, "the build runs on b1", func() bool { return len(b1.built()) == 1 })
	l.proxy.router.SetUp("b2", true, "")
	if got, want := l.change("drain", "b1", "new disk"), "builder 'b1' is drained; 1 build still runs there\n"; got != want {
		t.Errorf("the admin reads %q, want %q", got, want)
	}
	for _, name := range []string{"one", "two"} {
		if err := <-l.begin("bob", name); err != nil {
			t.Errorf("a new build: %v", err)
		}
	}
	if got := b2.built(); len(got) != 2 {
		t.Errorf("b2 built %q", got)
	}
	close(release)
	eventually(t, "the outputs are on their way", func() bool {
		return strings.Contains(l.admin("status"), "b1 is drained: new disk; no build runs there, and the outputs of 1 are being fetched")
	})
	close(read)
	if err := <-running; err != nil {
		t.Errorf("the running build: %v", err)
	}
	eventually(t, "the connections are closed", func() bool { return b1.connections() == 0 })
	dialled := b1.dialled()
	if got := l.admin("status"); !strings.Contains(got, "b1 is drained: new disk; no build runs there\n") {
		t.Errorf("status says:\n%s", got)
	}
	l.proxy.builds.lookAt(l.proxy.policy.Current().Builders)
	if b1.dialled() != dialled {
		t.Error("the drained builder was looked at")
	}
	if got := b1.built(); !slices.Equal(got, []string{"running"}) {
		t.Errorf("b1 built %q", got)
	}
	l.change("undrain", "b1")
	l.proxy.router.SetUp("b2", false, "away")
	if err := <-l.begin("bob", "three"); err != nil {
		t.Errorf("a build after undrain: %v", err)
	}
}

// admin asks as the admin does, who never sees an old answer here.
func (l *lab) admin(words ...string) string {
	l.Helper()
	l.proxy.glances.forget()
	answer, err := l.proxy.answer(l.Context(), &asker{}, words...)
	if err != nil {
		l.Fatalf("%q: %v", words, err)
	}
	return answer
}

// Guards against builds that wait for ever for a builder which the admin has taken
// away.
func TestQueuedBuildThatOnlyADrainedBuilderCouldRunFails(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.build = held(release)
	l := newLab(t, b)
	running := l.begin("alice", "running")
	eventually(t, "the build runs", func() bool { return len(b.built()) == 1 })
	queued := l.begin("bob", "queued")
	eventually(t, "the next one waits", func() bool { return len(l.proxy.router.Status().Queue) == 1 })
	l.change("drain", "b1", "new disk")
	if err := <-queued; err == nil || !strings.Contains(err.Error(), "b1: drained: new disk") {
		t.Errorf("the queued build: %v", err)
	}
	close(release)
	if err := <-running; err != nil {
		t.Errorf("the running build: %v", err)
	}
}

// Guards against a reload that forgets what the admin has drained, and one that
// remembers it of a builder that was gone in between.
func TestDrainOutlivesAReload(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, b1, b2)
	l.change("drain", "b1")
	text := l.policyText()
	l.reload(strings.ReplaceAll(text, "max_jobs: 1", "max_jobs: 3"))
	if err := <-l.begin("alice", "one"); err != nil || len(b1.built()) > 0 {
		t.Errorf("after a reload b1 built %q, %v", b1.built(), err)
	}
	without := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool { return strings.Contains(line, "name: b1,") })
	l.reload(strings.Join(without, ""))
	l.reload(text)
	l.proxy.router.SetUp("b2", false, "away")
	if err := <-l.begin("alice", "two"); err != nil || len(b1.built()) != 1 {
		t.Errorf("b1 is new and built %q, %v", b1.built(), err)
	}
}

func (l *lab) policyText() string {
	l.Helper()
	text, err := os.ReadFile(l.file)
	if err != nil {
		l.Fatal(err)
	}
	return string(text)
}

func (l *lab) reload(text string) {
	l.Helper()
	if err := os.WriteFile(l.file, []byte(text), 0o600); err != nil {
		l.Fatal(err)
	}
	if _, err := l.proxy.Reload("test"); err != nil {
		l.Fatalf("reload: %v", err)
	}
}

// Guards against a file that is half understood: a builder would be used that the
// admin has taken apart.
func TestListOfDrainedBuildersIsReadStrictly(t *testing.T) {
	good := `{"drained": [{"builder": "b1", "reason": "new disk"}, {"builder": "b2", "reason": ""}]}`
	reasons, err := parseDrains([]byte(good))
	if err != nil || len(reasons) != 2 || reasons["b1"] != "new disk" {
		t.Errorf("%s: %q, %v", good, reasons, err)
	}
	for _, bad := range []string{
		``, `[]`, `{"drained": [{"builder": "b1"}]} {}`, `{"drained": [{"builder": ""}]}`, `{"drained": [{"name": "b1"}]}`,
		`{"drained": [{"builder": "b1"}, {"builder": "b1"}]}`, `{"drained": [{"builder": "b1", "reason": "two\nlines"}]}`,
		`{"drained": [{"builder": "b1", "reason": "` + strings.Repeat("x", maxDrainReason+1) + `"}]}`,
	} {
		if reasons, err := parseDrains([]byte(bad)); err == nil {
			t.Errorf("%q is read as %q", bad, reasons)
		}
	}
}

// Guards against a state file that a crash leaves half written, and against a drain
// that is forgotten since it could not be written.
func TestDrainIsWrittenBeforeItCounts(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	dir := filepath.Dir(l.proxy.drains.file)
	if err := os.Mkdir(l.proxy.drains.file, 0o700); err != nil { // nothing can be renamed over it
		t.Fatal(err)
	}
	if _, err := l.proxy.ChangeAdmin(t.Context(), "root", []string{"drain", "b1"}); err == nil {
		t.Error("drained without a file")
	}
	if err := <-l.begin("alice", "one"); err != nil {
		t.Errorf("a build: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, drainFile+".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
