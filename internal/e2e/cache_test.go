package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// cacheURI is the store of the domain "default" on the proxy's host.
const cacheURI = "file://" + world.StateDir + "/cache/domain/default"

// Nix itself can read what the proxy keeps, and after kill -9 everything that is
// there is whole. Guards against a format of our own, and against a store that
// only a running proxy can make sense of.
func TestNixReadsTheCache(t *testing.T) {
	proxy, client, builder := startTrio(t)
	client.MustShell(t, "mkdir /root/tree && head -c 3000000 /dev/urandom >/root/tree/blob && ln -s blob /root/tree/link && install -m 755 /bin/true /root/tree/tool")
	file := writeExpression(t, client, testbed.Derivation{Name: "kept", Sources: []string{"/root/tree"}, KeepInputs: true,
		Outputs: []string{"out", "foo"}, OutputFiles: 50, OutputSize: 1000, Random: true})
	paths, _ := startBuild(t, client, file, []string{"kept.all"}).mustSucceed(t)

	t.Run("nix copy and verify", func(t *testing.T) { testNixCopies(t, proxy.Host(), client, paths) })
	t.Run("kill -9 in an upload", func(t *testing.T) { testKilledInUpload(t, proxy, client, 1) })
	t.Run("kill -9 and start again", func(t *testing.T) { testStartsAgain(t, proxy, client, paths) })
	t.Run("SIGTERM in a build", func(t *testing.T) { testTerminated(t, proxy, client, builder) })
}

func TestSoakKillsInUploads(t *testing.T) {
	onlyInSoak(t)
	proxy, client, _ := startTrio(t)
	for round := range 20 {
		testKilledInUpload(t, proxy, client, round+1)
	}
}

// startTrio starts a proxy with one client and one builder.
func startTrio(t *testing.T) (proxy *world.Proxy, client, builder *testbed.Host) {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 2, OnDisk: []string{"/nix"}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}, OnDisk: []string{"/nix"}})
	proxy = startProxy(t, bed, world.ProxySpec{
		StateOnDisk: true,
		Builders:    []world.Builder{{Host: hosts[0], MaxJobs: 2}},
		Principals:  []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, hosts[1], proxy.Machine(key))
	return proxy, hosts[1], hosts[0]
}

func testNixCopies(t *testing.T, proxyHost, client *testbed.Host, paths []string) {
	all := strings.Join(paths, " ")
	// A verified path is usable at once and on disk soon.
	eventually(t, "the paths are published", patience, func() bool {
		res, err := proxyHost.Shell(t.Context(), "nix path-info --store "+cacheURI+" "+all)
		return err == nil && res.Status == 0
	})
	proxyHost.MustShell(t, "nix store verify --no-trust --recursive --store "+cacheURI+" "+all)
	proxyHost.MustShell(t, "nix copy --no-check-sigs --from "+cacheURI+" "+all)
	proxyHost.MustShell(t, "nix store verify --no-trust --recursive "+all)
	const query = "nix-store --query --hash $(nix-store --query --requisites "
	if got, want := proxyHost.MustShell(t, query+all+")"), client.MustShell(t, query+all+")"); got != want {
		t.Errorf("copied from the cache: %s\nthe client has: %s", got, want)
	}
}

// verifyAll has Nix check every path of the cache.
func verifyAll(t *testing.T, host *testbed.Host) {
	t.Helper()
	host.MustShell(t, "nix store verify --no-trust --all --store "+cacheURI)
}

// testKilledInUpload kills the proxy when some megabytes of an upload have come,
// in each round after more of them.
func testKilledInUpload(t *testing.T, proxy *world.Proxy, client *testbed.Host, round int) {
	const size = 300 << 20
	name := fmt.Sprintf("huge%d", round)
	client.MustShell(t, fmt.Sprintf("head -c %d /dev/urandom >/root/%s", size, name))
	file := writeExpression(t, client, testbed.Derivation{Name: "with-" + name, Sources: []string{"/root/" + name}})
	before := kibibytes(t, proxy)
	run := startBuild(t, client, file, []string{"with-" + name})
	eventually(t, "some of the upload has come", patience, func() bool { return kibibytes(t, proxy) > before+round*10_000 })
	if err := proxy.Kill(); err != nil {
		t.Fatal(err)
	}
	run.mustFail(t)
	if narinfos := proxy.Host().MustShell(t, "grep -l -- '-"+name+"$' "+world.StateDir+"/cache/domain/default/*.narinfo || true"); narinfos != "" {
		t.Errorf("half an upload was published: %s", narinfos)
	}
	verifyAll(t, proxy.Host())
	hostKey := proxy.HostKey()
	if err := proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if proxy.HostKey() != hostKey {
		t.Error("the proxy has another host key after its restart")
	}
	startBuild(t, client, file, []string{"with-" + name}).mustSucceed(t)
}

// kibibytes is what the proxy's state takes on disk.
func kibibytes(t *testing.T, proxy *world.Proxy) int {
	t.Helper()
	// Files that go while du looks at them are no fault.
	text := proxy.Host().MustShell(t, "du -sk "+world.StateDir+" 2>/dev/null || true")
	n, err := strconv.Atoi(strings.Fields(text)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What was there before is there again, and no builder is asked for it.
func testStartsAgain(t *testing.T, proxy *world.Proxy, client *testbed.Host, paths []string) {
	if err := proxy.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	verifyAll(t, proxy.Host())
	store := "'ssh-ng://proxy?ssh-key=/root/.ssh/alice'"
	client.MustShell(t, "nix-store --delete "+paths[1]+" "+paths[0]+" && nix copy --no-check-sigs --from "+store+" "+strings.Join(paths, " "))
	client.MustShell(t, "nix-store --verify-path "+strings.Join(paths, " "))
}

// Guards against a proxy that hangs at its end, or leaves builds behind.
func testTerminated(t *testing.T, proxy *world.Proxy, client, builder *testbed.Host) {
	run, log := startWatched(t, client, gated("endless"))
	awaitText(t, client, log, "before the gate")
	if err := proxy.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitText(t, client, log, "this host restarts; the build goes on and has 1m0s to end")
	if n := runningBuilds(t, builder); n != 1 {
		t.Errorf("%d builds run after the first signal", n)
	}
	if err := proxy.Terminate(t.Context()); err != nil { // the second one
		t.Fatal(err)
	}
	run.mustFail(t)
	awaitText(t, client, log, "shutting down")
	awaitBuilds(t, builder, 0, 10*time.Second)
	verifyAll(t, proxy.Host())
}
