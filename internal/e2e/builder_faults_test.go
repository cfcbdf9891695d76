package e2e

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A ward is a client and two builders. Whatever breaks there is restarted, and known
// to the others as before.
type ward struct {
	bed      *testbed.Bed
	proxy    *world.Proxy
	builders []*testbed.Host
	client   *testbed.Host
	builds   int    // so far
	running  string // name of the build that is about to survive
}

// garbler is nix-daemon until garbageFile has something on its host, which it then says
// in the middle of whatever it was saying, and first to whoever comes later.
const (
	garbler     = "/usr/local/bin/garbler"
	garbageFile = "/tmp/garbage"
	garblerText = `#!/bin/sh
test ! -s ` + garbageFile + ` || cat ` + garbageFile + `
( while kill -0 $$ 2>/dev/null; do
    test ! -s ` + garbageFile + ` || { cat ` + garbageFile + `; exit; }
    sleep 0.05
  done ) &
exec nix-daemon --stdio
`
)

// damager is run by the daemon after each build, and writes into what is registered
// already if damageFlag is there: the disk then gives back other bytes.
const (
	damager     = "/usr/local/bin/damager"
	damageFlag  = "/tmp/damage"
	damagerText = `#!/bin/sh
test -e ` + damageFlag + ` || exit 0
for out in $OUT_PATHS; do
  chmod -R u+w $out
  printf damaged | dd of=$out/file1 bs=1 seek=100 conv=notrunc status=none
done
`
)

// startWard starts one with more lines of the policy.
func startWard(t *testing.T, policy string) *ward {
	t.Helper()
	binds := map[string]string{garbler: program(t, garblerText), damager: program(t, damagerText)}
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	builder := func(name string) testbed.HostSpec {
		return testbed.HostSpec{Name: name, Kind: testbed.Builder, Binds: binds, NixConf: []string{"post-build-hook = " + damager},
			Authorize: map[string][]testbed.Key{testbed.TrustedAccount: {world.BuilderKey(bed, "proxy")}}}
	}
	hosts := bed.MustStart(t, builder("b1"), builder("b2"), testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	w := &ward{bed: bed, builders: hosts[:2], client: hosts[2]}
	w.proxy = startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: hosts[0]}, {Host: hosts[1]}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Extra:      policy,
	})
	setMachines(t, w.client, w.proxy.Machine(key))
	w.client.MustShell(t, "yes input | head -c 3000000 >/root/input")
	return w
}

// program makes a file of this machine that hosts can bind and run.
func program(t *testing.T, text string) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// A breakage is what happens to a builder in the middle of a build.
type breakage struct {
	what   string
	strike func(t *testing.T, w *ward, victim *testbed.Host)
	// says are words, one of which the client reads beside the builder's name.
	says []string
	// remoteProgram is what the proxy starts on the builders; "" is Nix's own.
	remoteProgram string
	// outputSize is that of the build, in bytes; 0 is 4 MiB.
	outputSize int64
}

var breakages = []breakage{
	{what: "its sshd is killed", strike: killSSHD, says: lostWords},
	{what: "its nix-daemon is killed", strike: killDaemon, says: lostWords},
	{what: "its sshd allows no sessions", strike: allowNoSessions, says: lostWords},
	{what: "its sshd takes no more logins", strike: takeNoLogins, says: lostWords},
	{what: "its disk is full", strike: fillDisk, says: []string{"No space left", "disk"}},
	{what: "it greets in the middle", strike: sayGarbage("Broadcast message from root@builder:\n\nThe system will reboot now!\n"),
		says: garbageWords, remoteProgram: garbler},
	{what: "it says nonsense", strike: sayGarbage(word64(0x6f6c6d67) + word64(1<<62)), says: garbageWords, remoteProgram: garbler},
	{what: "its disk gives other bytes", strike: damageOutput, says: []string{"hash", "bytes", "announced"}, outputSize: 20_000},
	{what: "it stands still", strike: freeze, says: silentWords},
	{what: "its cable is pulled", strike: pullCable, says: silentWords},
}

var (
	lostWords    = []string{"ended", "lost", "reset", "closed", "disconnected"}
	garbageWords = []string{"text instead of", "unexpected", "expected", "larger than", "limit", "unknown", "got"}
	silentWords  = []string{"sign of life", "silent", "does not answer"}
)

// Whatever breaks on a builder in the middle of a build, the client has its result
// from another builder and reads what happened. Guards against failures that only
// the proxy can mend: after its upload a client never looks for another machine.
func TestBuildSurvivesItsBuilder(t *testing.T) {
	w := startWard(t, "scheduling: {hung_after: 3s}\n")
	for _, b := range breakages {
		t.Run(b.what, func(t *testing.T) { w.survive(t, b) })
	}
}

func TestSoakBuildSurvivesItsBuilder(t *testing.T) {
	onlyInSoak(t)
	const rounds = 20
	w := startWard(t, "") // with the times that the proxy has by itself
	for _, b := range breakages {
		t.Run(b.what, func(t *testing.T) {
			line := counted(t)
			for range rounds {
				line.round(t, func(t *testing.T) { line.note("%.1f s", w.survive(t, b).Seconds()) })
			}
		})
	}
}

// survive lets a builder break in the middle of a build, and returns how long it
// took until the build began elsewhere.
func (w *ward) survive(t *testing.T, b breakage) (took time.Duration) {
	if b.remoteProgram != "" {
		withPolicy(t, w.proxy, func(spec *world.ProxySpec) {
			for i := range spec.Builders {
				spec.Builders[i].Extra = []string{"remote_program: " + b.remoteProgram}
			}
		})
	}
	w.beginAnew(t)
	w.builds++
	d := gated(fmt.Sprintf("survivor%d", w.builds))
	d.Sources, d.KeepInputs, d.OutputSize = []string{"/root/input"}, true, cmp.Or(b.outputSize, 4<<20)
	w.running = d.Name
	run, log := startWatched(t, w.client, d)
	victim, other := w.whereItRuns(t)
	openGate(t, other, d.Name)
	defer w.heal(t, victim)

	since := time.Now()
	b.strike(t, w, victim)
	res := run.wait(t)
	said := w.client.MustShell(t, "cat "+log)
	if res.Status != 0 {
		t.Fatalf("the build failed after %v:\n%s", time.Since(since), tail(said))
	}
	took = w.began(t, other, d.Name).Sub(since)
	t.Logf("it began on another builder after %v, and the client had its result after %v", took, time.Since(since))
	w.wantSaid(t, said, victim, b.says)
	w.wantRight(t, strings.Fields(res.Stdout)[0], d)
	if n := timesRun(t, other, d.Name); n != 1 {
		t.Errorf("it ran %d times on %s", n, other.Name())
	}
	return took
}

// whereItRuns waits until one builder runs a build.
func (w *ward) whereItRuns(t *testing.T) (here, other *testbed.Host) {
	t.Helper()
	eventually(t, "the build runs", patience, func() bool {
		for i, b := range w.builders {
			if runningBuilds(t, b) == 1 {
				here, other = b, w.builders[1-i]
			}
		}
		return here != nil
	})
	return here, other
}

// began is when a gated build began on a builder.
func (w *ward) began(t *testing.T, builder *testbed.Host, name string) time.Time {
	t.Helper()
	return parseStamp(t, builder.MustShell(t, "stat -c %.6Y /tmp/ran."+name+".*"))
}

// wantSaid wants a line of the client's log that names the builder and one of the
// words.
func (w *ward) wantSaid(t *testing.T, said string, victim *testbed.Host, words []string) {
	t.Helper()
	for _, word := range words {
		for line := range strings.Lines(said) {
			if strings.Contains(line, "'"+victim.Name()+"'") && strings.Contains(line, word) {
				t.Logf("the client read: %s", strings.TrimSpace(line))
				return
			}
		}
	}
	t.Errorf("no line of the client's log says what happened to %s, with one of %q:\n%s", victim.Name(), words, tail(said))
}

// wantRight wants that the client has the very bytes that the build makes.
func (w *ward) wantRight(t *testing.T, out string, d testbed.Derivation) {
	t.Helper()
	w.client.MustShell(t, fmt.Sprintf("set -e; nix-store --verify-path %[1]s\nyes %[2]s | head -c %[3]d | busybox cmp - %[1]s/file1\nbusybox cmp $(cat %[1]s/inputs) /root/input",
		out, d.Name, d.OutputSize))
}

// heal restarts a builder with all that it had at first.
func (w *ward) heal(t *testing.T, victim *testbed.Host) {
	t.Helper()
	if err := victim.Restart(t.Context()); err != nil {
		t.Error(err)
	}
}

// beginAnew restarts the proxy, which would leave alone for a while what broke
// before, and waits until both builders have builds at once.
func (w *ward) beginAnew(t *testing.T) {
	t.Helper()
	if err := w.proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.builds++
	pair := testbed.Numbered(2, testbed.Derivation{Name: fmt.Sprintf("pair%d-", w.builds), Script: "while test ! -e /tmp/gate.pair; do sleep 0.05; done"})
	run := startBuild(t, w.client, writeExpression(t, w.client, pair...), namesOf(pair))
	for _, b := range w.builders {
		awaitBuilds(t, b, 1, patience)
	}
	for _, b := range w.builders {
		openGate(t, b, "pair")
	}
	run.mustSucceed(t)
	for _, b := range w.builders {
		b.MustShell(t, "rm /tmp/gate.pair")
	}
}

func killAll(t *testing.T, host *testbed.Host, pattern string) {
	t.Helper()
	pids, err := host.PIDs(pattern)
	if err != nil || len(pids) == 0 {
		t.Fatalf("nothing on %s is called %s: %v", host.Name(), pattern, err)
	}
	for _, pid := range pids {
		// Some end with others that were killed before.
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			t.Fatal(err)
		}
	}
}

// killSSHD kills the listener and its sessions.
func killSSHD(t *testing.T, _ *ward, victim *testbed.Host) { killAll(t, victim, `sshd`) }

// killDaemon kills the listener and its workers, but not what sshd has started.
func killDaemon(t *testing.T, _ *ward, victim *testbed.Host) {
	killAll(t, victim, `^(\S*/)?nix-daemon( \d+)?$`)
}

// restartSSHD ends all connections, and has the next ones meet another
// configuration.
func restartSSHD(t *testing.T, victim *testbed.Host, setting string) {
	t.Helper()
	victim.MustShell(t, "set -e; cd /etc/ssh; { echo "+setting+"; cat sshd_config; } >new; mv new sshd_config")
	killSSHD(t, nil, victim)
	victim.MustShell(t, "/usr/sbin/sshd -E /var/log/sshd.again")
}

func allowNoSessions(t *testing.T, _ *ward, victim *testbed.Host) {
	restartSSHD(t, victim, "MaxSessions 0")
}

// takeNoLogins has somebody keep the only login that may be under way.
func takeNoLogins(t *testing.T, w *ward, victim *testbed.Host) {
	restartSSHD(t, victim, "MaxStartups 1:100:1")
	var keeper net.Conn
	eventually(t, "somebody logs in", patience, func() (ok bool) {
		conn, err := w.client.Dial(t.Context(), victim.Name()+":22")
		if err != nil {
			return false
		}
		keeper = conn
		return true
	})
	t.Cleanup(func() { keeper.Close() })
}

// fillDisk leaves less room than the build needs, which then goes on. The host has
// one file system.
func fillDisk(t *testing.T, w *ward, victim *testbed.Host) {
	victim.MustShell(t, `set -e
		used=$(df --output=used -B1 /nix | tail -n1)
		mount -o remount,size=$((used + 1048576)) /nix`)
	openGate(t, victim, w.running)
}

// damageOutput spoils what the build makes, which then goes on.
func damageOutput(t *testing.T, w *ward, victim *testbed.Host) {
	victim.MustShell(t, "touch "+damageFlag)
	openGate(t, victim, w.running)
}

func sayGarbage(text string) func(*testing.T, *ward, *testbed.Host) {
	return func(t *testing.T, _ *ward, victim *testbed.Host) {
		if err := victim.WriteFile(t.Context(), garbageFile, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
}

func freeze(t *testing.T, _ *ward, victim *testbed.Host) {
	if err := victim.Freeze(); err != nil {
		t.Fatal(err)
	}
}

func pullCable(t *testing.T, _ *ward, victim *testbed.Host) {
	if err := victim.Cut(); err != nil {
		t.Fatal(err)
	}
}

// An sshd that allows little is used as far as it goes: no build fails of it. Guards
// against builders that are given up, or builds, because of a server's usual limits.
func TestBuilderWhoseServerAllowsLittle(t *testing.T) {
	const slots = 4
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "strict", Kind: testbed.Builder, MaxJobs: slots, SSHD: []string{"MaxSessions 1", "MaxStartups 1:100:1"}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	builder, client := hosts[0], hosts[1]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builder, MaxJobs: slots}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	all := testbed.Numbered(16, testbed.Derivation{Name: "patient", Work: time.Second})
	run := startBuild(t, client, writeExpression(t, client, all...), namesOf(all))
	run.mustSucceed(t)
	records, err := builder.BuildRecords(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d builds took %v, at most %d at once", len(records), run.took, testbed.PeakBuilds(records))
	if len(records) != len(all) || testbed.PeakBuilds(records) < 2 {
		t.Errorf("%d builds ran, at most %d at once; want %d, and some beside others", len(records), testbed.PeakBuilds(records), len(all))
	}
}
