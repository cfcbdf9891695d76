package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// The proxy is killed at any moment of uploads and builds, is started again, and
// serves at once: all that it has is whole, nothing temporary is left, the
// builder has no session of the dead proxy, and clients go on. Guards against
// paths that are published before their bytes are, and against what only an
// orderly end would clean up.
func TestKilledProxyGoesOn(t *testing.T) { testKills(t, 5) }

func TestSoakKilledProxyGoesOn(t *testing.T) {
	onlyInSoak(t)
	testKills(t, 100)
}

func testKills(t *testing.T, rounds int) {
	line := counted(t)
	// So small that in many rounds paths are evicted too.
	w := startSite(t, siteSpec{slots: 2, policy: "cache: {size: 256MiB}\n"})
	seed := rand.Uint64()
	moments := rand.New(rand.NewPCG(seed, 0))
	// The first time is longer, as everything is new.
	takes := min((&killing{site: w, name: "cold"}).undisturbed(t), (&killing{site: w, name: "warm"}).undisturbed(t))
	t.Logf("the client's work takes %v; the moments come from seed %d", takes, seed)
	phases := map[phase]int{}
	for n := range rounds {
		k := &killing{site: w, name: fmt.Sprintf("k%d", n+1), after: time.Duration(moments.Int64N(int64(takes)))}
		line.round(t, k.run)
		phases[k.phase]++
	}
	line.note("killed %d times with a client at work, %d before it came, %d after it had all; %d paths in the end",
		phases[inside], phases[before], phases[after], w.wantVerified(t))
	t.Log(line.notes)
}

// A phase is where the client's work was when the proxy was killed.
type phase int

const (
	before phase = iota // the client had not logged in
	inside
	after // the client's build had ended
)

// A killing is one round: a client at work, and the proxy killed beside it.
type killing struct {
	*site
	name  string
	after time.Duration // from the client's start to the kill
	phase phase
}

// undisturbed is how long the client's work takes when nobody kills the proxy.
func (k *killing) undisturbed(t *testing.T) time.Duration {
	t.Helper()
	file, attribute := k.work(t)
	run := startBuild(t, k.client, file, []string{attribute})
	run.mustSucceed(t)
	return run.took
}

// work is a build from a large and many small inputs, and a second one from its
// two outputs.
func (k *killing) work(t *testing.T) (file, attribute string) {
	t.Helper()
	const large, files = 8 << 20, 40
	dir := "/root/" + k.name
	k.client.MustShell(t, fmt.Sprintf(
		"mkdir %[1]s && head -c %[2]d /dev/urandom >%[1]s/large && for n in $(seq %[3]d); do echo %[1]s $n >%[1]s/small$n; done", dir, large, files))
	sources := []string{dir + "/large"}
	for n := range files {
		sources = append(sources, fmt.Sprintf("%s/small%d", dir, n+1))
	}
	first := testbed.Derivation{Name: k.name + "-first", Sources: sources, KeepInputs: true, Outputs: []string{"out", "foo"}, OutputSize: large, Random: true}
	last := testbed.Derivation{Name: k.name + "-last", Inputs: []string{first.Name}, KeepInputs: true}
	return writeExpression(t, k.client, first, last), last.Name
}

func (k *killing) run(t *testing.T) {
	file, attribute := k.work(t)
	mark := k.proxy.Mark()
	run := startBuild(t, k.client, file, []string{attribute})
	select {
	case <-time.After(k.after):
	case <-run.done:
	}
	orphans := k.kill(t, run, mark)
	if err := k.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	k.client.MustShell(t, "nix store ping --store "+k.store())
	k.wantOneFolder(t)
	k.wantOrphansGone(t, orphans)
	run.wait(t) // whether it failed depends on the moment
	k.wantVerified(t)
	paths, _ := startBuild(t, k.client, file, []string{attribute}).mustSucceed(t)
	k.client.MustShell(t, "nix-store --verify-path $(nix-store --query --requisites "+strings.Join(paths, " ")+")")
}

// kill kills the proxy, notes in which phase the client was, and returns the
// daemon sessions that the proxy had on the builder.
func (k *killing) kill(t *testing.T, run *running, mark int) (orphans []int) {
	t.Helper()
	orphans, err := k.builder.PIDs(daemonSession)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.proxy.Kill(); err != nil {
		t.Fatal(err)
	}
	k.phase = before
	for _, l := range k.proxy.LinesSince(mark) {
		if l.Msg == "ssh login" {
			k.phase = inside
		}
	}
	select {
	case <-run.done:
		if run.err == nil && run.result.Status == 0 {
			k.phase = after
		}
	default:
	}
	return orphans
}

// daemonSession matches the processes behind the proxy's sessions on a builder.
const daemonSession = "nix-daemon --stdio"

// wantOrphansGone waits until the builder has ended what a dead proxy had there.
func (w *site) wantOrphansGone(t *testing.T, orphans []int) {
	t.Helper()
	eventually(t, "the builder has ended the sessions of the dead proxy", patience, func() bool {
		for _, pid := range orphans {
			if isDaemonSession(pid) {
				return false
			}
		}
		return true
	})
}

func isDaemonSession(pid int) bool {
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(strings.ReplaceAll(string(command), "\x00", " "), daemonSession)
}

// wantOneFolder wants that the new proxy has wiped what the dead one was writing.
func (w *site) wantOneFolder(t *testing.T) {
	t.Helper()
	folders := w.proxy.Host().MustShell(t, "ls -d "+world.StateDir+"/cache/tmp/*/")
	if got := strings.Fields(folders); len(got) != 1 {
		t.Errorf("temporary folders are %q, want that of the running proxy alone", got)
	}
}

// An orderly end says so to clients whose builds run and gives them time, until a second
// signal; it leaves nothing on the
// builder and ends with status 0; after it clients that check the host key
// strictly go on as before. Guards against a proxy that hangs at its end or
// drops its clients without a word.
func TestTerminatedProxySaysSoAndGoesOn(t *testing.T) {
	w := startSite(t, siteSpec{slots: 1})
	build(t, w.client, testbed.Derivation{Name: "early"})
	hostKey := w.proxy.HostKey()
	running, runningLog := startWatched(t, w.client, gated("endless"))
	awaitText(t, w.client, runningLog, "before the gate")
	mark := w.proxy.Mark()
	waiting, waitingLog := startWatched(t, w.other, gated("queued"))
	waitLine(t, w.proxy, mark, world.Message("ssh login"))
	awaitText(t, w.other, waitingLog, "wait")

	if err := w.proxy.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitText(t, w.client, runningLog, "this host restarts; the build goes on")
	awaitText(t, w.other, waitingLog, "this host restarts; the build goes on")
	w.terminate(t) // the second signal: the time to drain is over
	running.mustFail(t)
	waiting.mustFail(t)
	awaitText(t, w.client, runningLog, "the proxy is shutting down")
	awaitText(t, w.other, waitingLog, "the proxy is shutting down")
	awaitBuilds(t, w.builder, 0, patience)
	eventually(t, "the builder has no session of the proxy any more", patience, func() bool {
		sessions, err := w.builder.PIDs(daemonSession)
		return err == nil && len(sessions) == 0
	})
	if ran := timesRun(t, w.builder, "queued"); ran != 0 {
		t.Errorf("the build that waited was begun %d times", ran)
	}

	if err := w.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.proxy.HostKey() != hostKey {
		t.Error("the proxy has another host key after its restart")
	}
	build(t, w.client, testbed.Derivation{Name: "later"})
	build(t, w.other, testbed.Derivation{Name: "early"})
	if got := builtOn(w.proxy, "early"); len(got) != 1 {
		t.Errorf("what was built before the restart was built on %q, want once", got)
	}
	w.wantVerified(t)
}

// terminate ends the proxy by SIGTERM and wants status 0. It waits longer than
// the proxy lets operations run on, and not much.
func (w *site) terminate(t *testing.T) {
	t.Helper()
	mark := w.proxy.Mark()
	if err := w.proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, l := range w.proxy.LinesSince(mark) {
		if strings.Contains(l.Raw, "the program ended") {
			t.Errorf("the proxy ended badly: %s", l.Raw)
		}
	}
}
