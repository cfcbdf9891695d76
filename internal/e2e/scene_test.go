package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// patience bounds every wait: what takes longer hangs.
const patience = 2 * time.Minute

// soak reports whether the long counts are wanted.
func soak() bool { return os.Getenv("NIXBASTION_SOAK") == "1" }

// onlyInSoak ends a test of long counts that nobody asked for, and gives the
// others their line in the table.
func onlyInSoak(t *testing.T) {
	t.Helper()
	if !soak() {
		t.Skip("long counts run with NIXBASTION_SOAK=1 (make soak)")
	}
	counted(t)
}

// startProxy starts a proxy, fails the test if it does not come up, and shows
// its log if the test fails later.
func startProxy(t *testing.T, bed *testbed.Bed, spec world.ProxySpec) *world.Proxy {
	t.Helper()
	p, err := world.StartProxy(t.Context(), bed, spec)
	if p != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("log of the proxy:\n%s", tail(p.LogText()))
			}
			p.Kill()
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tail is the end of a text: what matters of a log that can be very long.
func tail(text string) string {
	const shown = 12000
	if len(text) <= shown {
		return text
	}
	return "...\n" + text[len(text)-shown:]
}

// expressions counts the files that tests write, so that none is written twice.
var expressions atomic.Int64

// twoBuilders starts the builders b1 and b2 and a client with the key of alice.
func twoBuilders(t *testing.T) (bed *testbed.Bed, key testbed.Key, builders []*testbed.Host, client *testbed.Host) {
	t.Helper()
	bed = testbed.ForTest(t)
	key = bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "b1", Kind: testbed.Builder},
		testbed.HostSpec{Name: "b2", Kind: testbed.Builder},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	return bed, key, hosts[:2], hosts[2]
}

// writeExpression puts derivations into a file on a client.
func writeExpression(t *testing.T, client *testbed.Host, derivations ...testbed.Derivation) (file string) {
	t.Helper()
	file = fmt.Sprintf("/root/e2e/%d.nix", expressions.Add(1))
	if err := client.WriteFile(t.Context(), file, []byte(testbed.Expression(derivations...))); err != nil {
		t.Fatal(err)
	}
	return file
}

// A running build is nix-build on a client, under way.
type running struct {
	client *testbed.Host
	done   chan struct{}
	cancel context.CancelFunc
	// Set when done is closed.
	result testbed.Result
	err    error
	took   time.Duration
}

// startBuild begins to build attributes of an expression.
func startBuild(t *testing.T, client *testbed.Host, file string, attributes []string) *running {
	t.Helper()
	return startScript(t, client, buildScript(file, attributes))
}

// startBuildFor is startBuild with more patience, for large builds.
func startBuildFor(t *testing.T, patience time.Duration, client *testbed.Host, file string, attributes []string) *running {
	t.Helper()
	return startScriptFor(t, patience, client, buildScript(file, attributes))
}

func buildScript(file string, attributes []string) string {
	return "exec nix-build --no-out-link " + file + " -A " + strings.Join(attributes, " -A ")
}

// startScript runs a script on a host, beside the test.
func startScript(t *testing.T, host *testbed.Host, script string) *running {
	t.Helper()
	return startScriptFor(t, patience, host, script)
}

func startScriptFor(t *testing.T, patience time.Duration, host *testbed.Host, script string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	r := &running{client: host, done: make(chan struct{}), cancel: cancel}
	began := time.Now()
	go func() {
		defer close(r.done)
		defer cancel()
		r.result, r.err = host.Shell(ctx, script)
		r.took = time.Since(began)
	}()
	t.Cleanup(func() { r.kill() })
	return r
}

// kill ends what was started by SIGKILL, its whole process group at once.
func (r *running) kill() {
	r.cancel()
	<-r.done
}

// wait returns what the client said once it has ended.
func (r *running) wait(t *testing.T) testbed.Result {
	t.Helper()
	<-r.done
	if r.err != nil {
		t.Fatalf("%s: %v", r.client.Name(), r.err)
	}
	return r.result
}

// mustSucceed waits and returns the store paths that nix-build printed.
func (r *running) mustSucceed(t *testing.T) (paths []string, log string) {
	t.Helper()
	res := r.wait(t)
	if res.Status != 0 {
		t.Fatalf("build on %s ended with status %d:\n%s", r.client.Name(), res.Status, tail(res.Stderr))
	}
	return strings.Fields(res.Stdout), res.Stderr
}

// mustFail waits and returns what the client said about its failed build.
func (r *running) mustFail(t *testing.T) (log string) {
	t.Helper()
	res := r.wait(t)
	if res.Status == 0 {
		t.Fatalf("build on %s succeeded:\n%s", r.client.Name(), tail(res.Stderr))
	}
	return res.Stderr
}

// build has one derivation built on a client's behalf and returns its paths.
func build(t *testing.T, client *testbed.Host, derivation testbed.Derivation) (paths []string, log string) {
	t.Helper()
	file := writeExpression(t, client, derivation)
	return startBuild(t, client, file, []string{derivation.Name}).mustSucceed(t)
}

// setMachines makes the proxy the only machine of a client.
func setMachines(t *testing.T, client *testbed.Host, machines ...testbed.Machine) {
	t.Helper()
	if err := client.SetMachines(t.Context(), machines...); err != nil {
		t.Fatal(err)
	}
}

// wantText fails the test for each part that a text lacks.
func wantText(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s lacks %q:\n%s", what, part, tail(text))
		}
	}
}

// eventually asks until the answer is yes, as the processes of a host tell
// nobody when they change.
func eventually(t *testing.T, what string, within time.Duration, ask func() bool) {
	t.Helper()
	const interval = 20 * time.Millisecond
	for end := time.Now().Add(within); ; time.Sleep(interval) {
		if ask() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// runningBuilds counts the builds whose processes run on a builder.
func runningBuilds(t *testing.T, builder *testbed.Host) int {
	t.Helper()
	builds, err := builder.RunningBuilds()
	if err != nil {
		t.Fatal(err)
	}
	return len(builds)
}

// awaitBuilds waits until so many builds run on a builder.
func awaitBuilds(t *testing.T, builder *testbed.Host, n int, within time.Duration) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d builds run on %s", n, builder.Name()), within, func() bool {
		return runningBuilds(t, builder) == n
	})
}

// builtOn returns the builders on which a derivation was built, in order, by
// the proxy's log.
func builtOn(p *world.Proxy, name string) []string {
	var builders []string
	for _, l := range p.LinesSince(0) {
		if l.Msg == "built" && strings.HasSuffix(l.Text("drv"), "-"+name+".drv") {
			builders = append(builders, l.Text("builder"))
		}
	}
	return builders
}

// waitLine waits for a line of the proxy's log.
func waitLine(t *testing.T, p *world.Proxy, mark int, match func(world.Line) bool) world.Line {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	line, err := p.WaitLine(ctx, mark, match)
	if err != nil {
		t.Fatal(err)
	}
	return line
}
