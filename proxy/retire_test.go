package proxy

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

// succeed has a second proxy take the place of the lab's, on the same state directory.
// The old one is returned, and shut down with the test at the latest.
func (l *lab) succeed() (old *Proxy) {
	l.Helper()
	old = l.proxy
	if err := old.Retire(l.Context()); err != nil {
		l.Fatalf("retire: %v", err)
	}
	l.Cleanup(func() { l.shutDown(old) })
	var err error
	if l.proxy, err = New(l.Context(), Options{Policy: old.policy, Version: "next", Log: slog.New(slog.NewJSONHandler(l.log, nil))}); err != nil {
		l.Fatal(err)
	}
	return old
}

func (l *lab) shutDown(p *Proxy) {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.Context()), 30*time.Second)
	defer cancel()
	if err := p.Shutdown(ctx); err != nil {
		l.Errorf("shutdown: %v", err)
	}
}

// gatedBuilder is a builder whose builds begin, and end when the gate is opened.
func gatedBuilder(name string) (b *labBuilder, began chan string, gate chan struct{}) {
	began, gate = make(chan string, 16), make(chan struct{})
	b = newLabBuilder(name)
	b.maxJobs = 8
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		began <- drv.Outputs[0].Path.Name()
		select {
		case <-gate:
		case <-ctx.Done():
		}
		return makeOutputs(ctx, b, log, drv)
	}
	return b, began, gate
}

// Guards against builds that an upgrade fails, outputs that it loses, and sessions of
// the old process that cannot go on from upload to build to fetch.
func TestBuildsOutliveAnUpgrade(t *testing.T) {
	builder, began, gate := gatedBuilder("b1")
	l := newLab(t, builder)
	alice, bob := l.client("alice"), l.client("bob")
	input, later := newLabFile(labPath("input"), "1"), newLabFile(labPath("later"), "2")
	if err := alice.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 2)
	building := func(c *labClient, name string, inputs ...nix.StorePath) {
		_, err := c.build(t.Context(), nix.Discard, name, inputs...)
		results <- err
	}
	go building(alice, "running", input.info.Path)
	<-began

	old := l.succeed()
	if err := bob.upload(t.Context(), later); err != nil { // a session of the old one
		t.Fatal(err)
	}
	go building(bob, "begun-later", input.info.Path, later.info.Path)
	<-began
	carol := l.client("alice") // of the new one
	if valid, err := carol.QueryValidPaths(t.Context(), []nix.StorePath{input.info.Path, later.info.Path}, false); err != nil || len(valid) != 2 {
		t.Errorf("valid in the new process: %v, %v", valid, err)
	}
	if _, err := old.Reload("test"); err != nil || strings.Contains(l.log.String(), `"level":"ERROR"`) {
		t.Errorf("reload of the old process: %v; the log:\n%s", err, l.log)
	}
	close(gate)
	for range 2 {
		if err := <-results; err != nil {
			t.Errorf("a build of the old process: %v", err)
		}
	}
	want := map[string]string{}
	for name, c := range map[string]*labClient{"running": alice, "begun-later": bob} {
		var err error
		if want[name], err = c.read(t.Context(), labPath(name)); err != nil {
			t.Errorf("read from the old process: %v", err)
		}
	}
	alice.hangUp()
	bob.hangUp()
	l.shutDown(old)
	for name, text := range want {
		if got, err := carol.read(t.Context(), labPath(name)); err != nil || got != text {
			t.Errorf("read from the new process: %q, %v; want %q", got, err, text)
		}
	}
	result, err := carol.build(t.Context(), nix.Discard, "new", later.info.Path)
	mustSucceed(t, result, err)
}

// Guards against an upgrade that failed and left a proxy behind that cannot do what it
// could before.
func TestAProxyThatResumesIsAsBefore(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	if err := l.proxy.Retire(t.Context()); err != nil {
		t.Fatal(err)
	}
	meanwhile := newLabFile(labPath("meanwhile"), "1")
	alice := l.client("alice")
	if err := alice.upload(t.Context(), meanwhile); err != nil {
		t.Fatal(err)
	}
	if err := l.proxy.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "hello", meanwhile.info.Path)
	mustSucceed(t, result, err)
	if _, err := l.proxy.Reload("test"); err != nil {
		t.Error(err)
	}
	if all, err := alice.QueryAllValidPaths(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("all paths: %v, %v", all, err)
	}
	l.restart()
	if got, err := l.client("alice").read(t.Context(), labPath("meanwhile")); err != nil || got != "1" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
}

// Guards against a restart of which the clients whose builds it may end hear nothing.
func TestClientsAreToldThatTheProxyDrains(t *testing.T) {
	builder, began, gate := gatedBuilder("b1")
	l := newLab(t, builder)
	var told lines
	done := make(chan error, 1)
	alice := l.client("alice")
	go func() {
		_, err := alice.build(t.Context(), &told, "long")
		done <- err
	}()
	<-began
	l.proxy.Drain(t.Context(), time.Minute)
	close(gate) // sessions of a lab are not the front's: nothing waited for this one
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(told.String(), "this host restarts; the build goes on and has 1m0s to end") {
		t.Errorf("the client was told:\n%s", told.String())
	}
}

// Guards against an admin who believes that nothing runs on a builder any more, since its
// builds are the old process's.
func TestAnAdminIsToldOfTheOldProcess(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"), newLabBuilder("b2"))
	old := l.succeed()
	if got := l.change("drain", "b1", "new disk"); got != "builder 'b1' is drained; no build runs there; an old process may still have builds there\n" {
		t.Errorf("the admin reads %q", got)
	}
	if got := l.admin("status"); !strings.Contains(got, "an old process still ends its builds") {
		t.Errorf("status says:\n%s", got)
	}
	l.shutDown(old)
	eventually(t, "status says nothing of an old process", func() bool { return !strings.Contains(l.admin("status"), "old process") })
}

// Guards against a drained builder that is used again, or after the next restart, since
// each of two processes has a list of its own and the old one writes over the new one's.
func TestTheListOfDrainedBuildersGoesToTheNewProcess(t *testing.T) {
	b1, b2, b3 := newLabBuilder("b1"), newLabBuilder("b2"), newLabBuilder("b3")
	l := newLab(t, b1, b2, b3)
	l.change("drain", "b2", "a new disk")
	old := l.succeed()
	if _, err := old.ChangeAdmin(t.Context(), "root", []string{"drain", "b3"}); err == nil || !strings.Contains(err.Error(), "ask again") {
		t.Errorf("drained by a process that is about to end: %v", err)
	}
	l.change("drain", "b1", "noise")
	old.LookAtDrains()
	for _, b := range []string{"b1", "b2"} {
		if !old.drains.drained(b) {
			t.Errorf("the old process uses %s", b)
		}
	}
	without := slices.DeleteFunc(strings.SplitAfter(l.policyText(), "\n"), func(line string) bool { return strings.Contains(line, "name: b2,") })
	l.reload(strings.Join(without, "")) // which has b2 forgotten
	l.change("drain", "b3", "heat")
	if _, err := old.Reload("test"); err != nil {
		t.Fatal(err)
	}
	if got, err := readDrains(l.proxy.drains.file); err != nil || len(got) != 2 || got["b1"] != "noise" || got["b3"] != "heat" {
		t.Errorf("the list has %v, %v", got, err)
	}
	l.change("undrain", "b1")
	old.LookAtDrains()
	if old.drains.drained("b1") || !old.drains.drained("b3") {
		t.Error("the old process does not hear what the new one has changed")
	}
	for _, b := range old.router.Status().Builders {
		if b.Name == "b1" && b.Trouble != "" {
			t.Errorf("b1 in the old process: %s", b.Trouble)
		}
	}
}

// Guards against a builder that one process puts to sleep while another has a build there:
// the one before the last may be the one that ends last.
func TestBuildersAreSharedUntilAllProcessesOfBeforeHaveEnded(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	if l.proxy.sleepers.shared() {
		t.Error("a process alone shares its builders")
	}
	first := l.succeed()
	if !first.sleepers.shared() {
		t.Error("a process that was replaced has its builders to itself")
	}
	second := l.succeed()
	third := l.proxy
	l.shutDown(first)
	eventually(t, "the first has ended", func() bool { return len(tmpFolders(t, l)) == 2 })
	if !second.sleepers.shared() {
		t.Error("the second process counts as alone since the first has ended")
	}
	l.shutDown(second)
	eventually(t, "the third is alone", func() bool { return !third.sleepers.shared() })
}

// Guards against a builder put to sleep under the builds of a process that outlives the
// one which took its place.
func TestBuildersAreSharedWithTheProcessBeforeTheLast(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	first := l.succeed()
	second := l.succeed()
	l.shutDown(second)
	eventually(t, "the second has ended", func() bool { return len(tmpFolders(t, l)) == 2 })
	if !l.proxy.sleepers.shared() {
		t.Error("the third process counts as alone while the first is there")
	}
	l.shutDown(first)
	eventually(t, "the third is alone", func() bool { return !l.proxy.sleepers.shared() })
}

// tmpFolders are those of the processes that use the store.
func tmpFolders(t *testing.T, l *lab) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(l.proxy.policy.Current().StateDir, "cache/tmp/*.lock"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Guards against a log that is lost since its build ended while the next process began,
// and took its file for what a crash has left.
func TestTheRecordThatTheOldProcessIsWritingIsLeftAlone(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	dir := filepath.Join(l.proxy.policy.Current().StateDir, "builds")
	names := []string{"aaaaaa.log.tmp", "bbbbbb.log", "bbbbbb.json.tmp"}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	there := func() (n int) {
		for _, name := range names {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				n++
			}
		}
		return n
	}
	old := l.succeed()
	if n := there(); n != len(names) {
		t.Errorf("%d of %d files are left", n, len(names))
	}
	l.shutDown(old)
	eventually(t, "the new process is alone", func() bool { return !l.proxy.cache.Shared() })
	l.restart()
	if n := there(); n != 0 {
		t.Errorf("%d files of nobody are left", n)
	}
}
