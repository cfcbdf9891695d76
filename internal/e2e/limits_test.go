package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// transferMemory is what the proxy may take while a path passes, however large
// it is, in bytes.
const transferMemory = 100 << 20

// longPatience bounds what goes through a disk that others use too.
const longPatience = 20 * time.Minute

// A path of any size goes from a client to a builder and another one back, and
// the proxy needs no more memory than for a small one. Guards against a NAR that
// is held in memory, and against garbage that piles up faster than it goes.
func TestLargePathNeedsLittleMemory(t *testing.T) { testLargeTransfer(t, 512<<20, nil) }

// The stores are on disk: six copies of such a path do not fit into memory.
func TestSoakLargePathNeedsLittleMemory(t *testing.T) {
	onlyInSoak(t)
	testLargeTransfer(t, 4<<30, []string{"/nix", "/large"})
}

func testLargeTransfer(t *testing.T, size int64, onDisk []string) {
	line := counted(t)
	w := startSite(t, siteSpec{onDisk: onDisk})
	w.client.MustShell(t, fmt.Sprintf("mkdir -p /large; yes large | head -c %d >/large/input", size))
	large := testbed.Derivation{
		Name: "large", Sources: []string{"/large/input"}, OutputSize: size,
		Script: fmt.Sprintf("test $(stat -c %%s $inputs) = %d", size),
	}
	file := writeExpression(t, w.client, large)

	peak := w.proxy.PeakRssAnon()
	paths, _ := startBuildFor(t, longPatience, w.client, file, []string{large.Name}).mustSucceed(t)
	line.saw(peak())
	t.Logf("%s there and back: the proxy took up to %s", mebibytes(size), mebibytes(line.peak))
	line.note("%s in, %s out", mebibytes(size), mebibytes(size))
	if line.peak > transferMemory {
		t.Errorf("the proxy took up to %s, want at most %s", mebibytes(line.peak), mebibytes(transferMemory))
	}
	if line.peak == 0 {
		t.Error("nobody saw what the proxy took")
	}
	w.client.MustShell(t, fmt.Sprintf("test $(stat -c %%s %s) = %d", paths[0], size))
	w.wantVerified(t)
}

// A site is a client, a builder and the proxy between them; besides there is a
// second client of the same principal.
type site struct {
	proxy   *world.Proxy
	builder *testbed.Host
	client  *testbed.Host
	other   *testbed.Host
	key     testbed.Key
}

type siteSpec struct {
	// slots of the builder; 0 is 4.
	slots int
	// onDisk are folders of each host that are too large for memory; with any
	// the proxy's state is on disk too.
	onDisk []string
	// policy are more lines of the proxy's policy.
	policy string
}

func startSite(t *testing.T, spec siteSpec) *site {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	if spec.slots == 0 {
		spec.slots = 4
	}
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: spec.slots, OnDisk: spec.onDisk},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}, OnDisk: spec.onDisk},
		testbed.HostSpec{Name: "other", Kind: testbed.Client, Keys: []testbed.Key{key}})
	w := &site{builder: hosts[0], client: hosts[1], other: hosts[2], key: key}
	w.proxy = startProxy(t, bed, world.ProxySpec{
		Builders:    []world.Builder{{Host: w.builder, MaxJobs: spec.slots}},
		Principals:  []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		StateOnDisk: spec.onDisk != nil,
		Extra:       spec.policy,
	})
	setMachines(t, w.client, w.proxy.Machine(key))
	setMachines(t, w.other, w.proxy.Machine(key))
	return w
}

// store is the proxy as a store, in words for a client's shell.
func (w *site) store() string { return "'ssh-ng://proxy?ssh-key=" + w.key.File() + "'" }

// cacheDir is where the proxy keeps what its clients uploaded and had built, as
// Nix reads it.
const cacheDir = world.StateDir + "/cache/domain/default"

// wantVerified has Nix itself read each path that the proxy has: on its disk as
// a binary cache, without any code of ours, and then through the proxy. It
// returns how many there were. A path whose bytes are not what its hash says
// fails the test.
func (w *site) wantVerified(t *testing.T) (paths int) {
	t.Helper()
	w.wantSettled(t)
	const verify = "nix store verify --no-trust --store "
	host := w.proxy.Host()
	host.MustShell(t, "test ! -e "+cacheDir+" || "+verify+"'file://"+cacheDir+"' --all")
	names := strings.Fields(host.MustShell(t, "sed -n 's/^StorePath: //p' "+cacheDir+"/*.narinfo 2>/dev/null || true"))
	for batch := range batches(names, 200) {
		w.other.MustShell(t, verify+w.store()+" "+strings.Join(batch, " "))
	}
	return len(names)
}

// wantSettled waits until nothing is on its way to the proxy's disk or off it:
// there are no temporary files, and the NARs are those that records name.
func (w *site) wantSettled(t *testing.T) {
	t.Helper()
	eventually(t, "nothing temporary is left on the proxy's disk, and each NAR has a name", patience, func() bool {
		named := w.proxy.Host().MustShell(t, "cd "+cacheDir+" 2>/dev/null && sed -n 's/^URL: //p' *.narinfo | sort -u; true")
		there := w.proxy.Host().MustShell(t, "cd "+world.StateDir+"/cache; find nar -type f | sort")
		return w.temporaryFiles(t) == "" && named == there
	})
}

// temporaryFiles lists what is neither published nor a lock.
func (w *site) temporaryFiles(t *testing.T) string {
	t.Helper()
	var found []string
	for _, dir := range []string{"cache/tmp/*/*", "tmp/*", "cache/quarantine/*"} {
		// Looked at from outside, as that costs no process.
		files, err := filepath.Glob(w.onProxy(t, filepath.Join(world.StateDir, dir)))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, files...)
	}
	return strings.Join(found, "\n")
}

// onProxy is a file of the proxy's host as this process sees it.
func (w *site) onProxy(t *testing.T, path string) string {
	t.Helper()
	all, err := w.proxy.Host().Processes()
	if err != nil || len(all) == 0 {
		t.Fatalf("the proxy's host has %v: %v", all, err)
	}
	return filepath.Join("/proc", fmt.Sprint(all[0].PID), "root", path)
}

// batches cuts a list, as command lines have a limit.
func batches(all []string, size int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for ; len(all) > 0; all = all[min(size, len(all)):] {
			if !yield(all[:min(size, len(all))]) {
				return
			}
		}
	}
}

// A client that stops reading in the middle of an output holds up nobody, and
// what it does not read is not kept in memory. Guards against buffers that grow
// as fast as a builder sends.
func TestStoppedClientHoldsUpNobody(t *testing.T) { testStoppedClient(t, 256<<20) }

func TestSoakStoppedClientHoldsUpNobody(t *testing.T) {
	onlyInSoak(t)
	testStoppedClient(t, 1<<30)
}

func testStoppedClient(t *testing.T, size int64) {
	line := counted(t)
	w := startSite(t, siteSpec{})
	large := testbed.Derivation{Name: "large", OutputSize: size}
	peak := w.proxy.PeakRssAnon()
	fetching := startBuildFor(t, longPatience, w.client, writeExpression(t, w.client, large), []string{large.Name})
	waitLine(t, w.proxy, 0, world.Message("built", "drv", "-large.drv"))
	eventually(t, "the client has a part of the output", patience, func() bool { return w.received(t) > size/16 })
	w.signalTransfer(t, syscall.SIGSTOP)
	eventually(t, "the proxy has all of the output", patience, func() bool { return w.temporaryFiles(t) == "" })

	build(t, w.other, testbed.Derivation{Name: "meanwhile", OutputSize: 8 << 20, Random: true})
	select {
	case <-fetching.done:
		t.Error("the stopped client ended: nothing was shown")
	default:
	}
	w.signalTransfer(t, syscall.SIGCONT)
	fetching.mustSucceed(t)
	line.saw(peak())
	t.Logf("the proxy took up to %s", mebibytes(line.peak))
	if line.peak > transferMemory {
		t.Errorf("the proxy took up to %s, want at most %s", mebibytes(line.peak), mebibytes(transferMemory))
	}
	w.wantVerified(t)
}

// transfers matches what moves bytes on a client.
const transfers = "^ssh |__build-remote"

// signalTransfer stops what moves bytes on the client, or lets it go on.
func (w *site) signalTransfer(t *testing.T, sig syscall.Signal) {
	t.Helper()
	pids, err := w.client.PIDs(transfers)
	if err != nil || len(pids) == 0 {
		t.Fatalf("nothing to send %v to: %v", sig, err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
}

// received is how many bytes of an output the client has, by what its ssh wrote.
func (w *site) received(t *testing.T) int64 {
	t.Helper()
	pids, err := w.client.PIDs(transfers)
	if err != nil {
		t.Fatal(err)
	}
	var most int64
	for _, pid := range pids {
		most = max(most, bytesWritten(pid))
	}
	return most
}

// bytesWritten is what a process has written to files and pipes; 0 if it ended.
func bytesWritten(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0
	}
	var n int64
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "wchar: "); ok {
			fmt.Sscan(rest, &n)
		}
	}
	return n
}

// A full disk is told to those whose paths do not fit, harms nothing that is
// there, and is over once there is space again. Guards against paths that are
// published in part, and against a store that has to be started anew.
func TestFullDiskIsToldAndPasses(t *testing.T) {
	const disk, small, large = 96 << 20, 4 << 20, 128 << 20
	w := startSite(t, siteSpec{policy: "cache: {size: 4GiB}\n"})
	w.resize(t, disk)
	build(t, w.client, testbed.Derivation{Name: "before", OutputSize: small, Random: true})

	w.client.MustShell(t, fmt.Sprintf("head -c %d /dev/urandom >/root/input", large))
	upload := writeExpression(t, w.client, testbed.Derivation{Name: "upload", Sources: []string{"/root/input"}})
	wantText(t, "the log of an upload that does not fit",
		startBuild(t, w.client, upload, []string{"upload"}).mustFail(t), "disk is full")
	output := writeExpression(t, w.client, testbed.Derivation{Name: "output", OutputSize: large, Random: true})
	wantText(t, "the log of a build whose output does not fit",
		startBuild(t, w.client, output, []string{"output"}).mustFail(t), "disk is full")

	build(t, w.other, testbed.Derivation{Name: "still", OutputSize: small, Random: true})
	if n := w.wantVerified(t); n == 0 {
		t.Error("the proxy has nothing")
	}

	w.proxy.Host().MustShell(t, fmt.Sprintf("mount -o remount,size=%d %s", 8*large, world.StateDir))
	startBuild(t, w.client, upload, []string{"upload"}).mustSucceed(t)
	startBuild(t, w.client, output, []string{"output"}).mustSucceed(t)
	w.wantVerified(t)
}

// resize moves the proxy's state to a file system of its own.
func (w *site) resize(t *testing.T, size int64) {
	t.Helper()
	if err := w.proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.proxy.Host().MustShell(t, fmt.Sprintf(
		"set -e; cp -a %[1]s /tmp/state; mount -t tmpfs -o mode=700,size=%[2]d tmpfs %[1]s; cp -a /tmp/state/. %[1]s", world.StateDir, size))
	if err := w.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(w.onProxy(t, world.StateDir), &fs); err != nil || int64(fs.Blocks)*fs.Bsize != size {
		t.Fatalf("the proxy's state is on a file system of %d bytes, want %d: %v", int64(fs.Blocks)*fs.Bsize, size, err)
	}
}
