package proxy

import (
	"context"
	"log/slog"
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

// Guards against builds that the old process of an upgrade begins on a builder which was
// drained in the new one.
func TestTheOldProcessFollowsDrains(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"), newLabBuilder("b2"))
	l.change("drain", "b2", "old reason")
	old := l.succeed()
	before := make(chan struct{})
	l.proxy.before = before
	l.change("undrain", "b2")
	if got := l.change("drain", "b1", "new disk"); got != "builder 'b1' is drained; no build runs there; an old process may still have builds there\n" {
		t.Errorf("the admin reads %q", got)
	}
	old.FollowDrains()
	for _, b := range old.router.Status().Builders {
		if b.Draining != (b.Name == "b1") || b.Draining && b.Trouble != "drained: new disk" {
			t.Errorf("in the old process %s is %+v", b.Name, b)
		}
	}
	if got := l.admin("status"); !strings.Contains(got, "an old process still ends its builds") {
		t.Errorf("status says:\n%s", got)
	}
	close(before)
	if got := l.admin("status"); strings.Contains(got, "old process") {
		t.Errorf("when it has ended status says:\n%s", got)
	}
}
