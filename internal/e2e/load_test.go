package e2e

import (
	"fmt"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// probeProcess matches the shell that tells a builder's load.
const probeProcess = "nixbastion looks at the load"

// A sharedFleet has a builder that others use, too, which is the fastest; a spare one;
// and one whose account may do nothing but run the daemon.
type sharedFleet struct {
	proxy                 *world.Proxy
	client                *testbed.Host
	shared, spare, forced *testbed.Host
	builds                int
}

// Others use a builder besides the proxy: it gets no builds while it is busy or full,
// and gets them again afterwards. Guards against a fleet that is judged by our own
// builds alone, and against shells that are left on builders.
func TestBuilderThatOthersUseIsLeftToThem(t *testing.T) {
	f := startSharedFleet(t)
	f.wantNext(t, f.shared)
	t.Run("while others fill its disk", func(t *testing.T) {
		f.wantKeptAway(t, "fallocate -l 1536M /nix/of-others", "rm /nix/of-others", "free on /nix/store, less than 1.0 GiB")
	})
	t.Run("while others load it", func(t *testing.T) {
		// All hosts share a kernel and so its load. What this one is told is another's.
		f.wantKeptAway(t, "echo '900.00 900.00 900.00 901/999 4711' >/run/load && mount --bind /run/load /proc/loadavg", "umount /proc/loadavg",
			"cores is over 200 per core")
	})
	t.Run("while it cannot be looked at", f.testForced)
	t.Run("and nothing is left there", f.testNothingLeft)
}

func startSharedFleet(t *testing.T) *sharedFleet {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "shared", Kind: testbed.Builder, MaxJobs: 2},
		testbed.HostSpec{Name: "spare", Kind: testbed.Builder, MaxJobs: 2},
		testbed.HostSpec{Name: "forced", Kind: testbed.Builder, Features: []string{"forced"}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	f := &sharedFleet{shared: hosts[0], spare: hosts[1], forced: hosts[2], client: hosts[3]}
	forceCommand(t, f.forced, world.BuilderKey(bed, "proxy"), "nix-daemon --stdio")
	f.shared.MustShell(t, "mount -o remount,size=$(($(du -sk /nix | cut -f1) + 2*1024*1024))k /nix")
	f.proxy = startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{
			{Host: f.shared, MaxJobs: 2, SpeedFactor: 10},
			{Host: f.spare, MaxJobs: 2},
			{Host: f.forced, MandatoryFeatures: []string{"forced"}},
		},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Extra:      "load: {every: 1s, min_disk: 1GiB, max_load: 200}\n",
	})
	setMachines(t, f.client, f.proxy.Machine(key))
	f.client.MustShell(t, "cp "+key.File()+" "+usualKey)
	waitLine(t, f.proxy, 0, world.Message("builder's load is seen", "builder", "shared"))
	return f
}

// wantNext wants the next build on a builder.
func (f *sharedFleet) wantNext(t *testing.T, on *testbed.Host, features ...string) {
	t.Helper()
	f.builds++
	name := fmt.Sprintf("next-%d", f.builds)
	build(t, f.client, testbed.Derivation{Name: name, RequiredFeatures: features})
	if got := builtOn(f.proxy, name); len(got) != 1 || got[0] != on.Name() {
		t.Errorf("%s was built on %v, want %s", name, got, on.Name())
	}
}

// wantKeptAway wants that no builds go to the shared builder from when others begin
// there until they end, and that everybody can read why.
func (f *sharedFleet) wantKeptAway(t *testing.T, begin, end, reason string) {
	mark := f.proxy.Mark()
	f.shared.MustShell(t, begin)
	waitLine(t, f.proxy, mark, world.Message("builder gets no builds for now", "builder", "shared", "reason", reason))
	f.wantNext(t, f.spare)
	wantText(t, "status", f.client.MustShell(t, "ssh proxy status"), "shared is overloaded: ", reason, "spare has load ")
	mark = f.proxy.Mark()
	f.shared.MustShell(t, end)
	waitLine(t, f.proxy, mark, world.Message("builder gets builds again", "builder", "shared"))
	f.wantNext(t, f.shared)
}

func (f *sharedFleet) testForced(t *testing.T) {
	f.wantNext(t, f.forced, "forced")
	const unknown = "does not run a shell for account 'nix'"
	wantText(t, "status", f.client.MustShell(t, "ssh proxy status"), "forced: no load known: it "+unknown)
	told := 0
	for _, l := range f.proxy.LinesSince(0) {
		if l.Msg == "builder's load is not known" && l.Text("builder") == "forced" {
			told++
		}
	}
	if told != 1 {
		t.Errorf("the log says %d times that the load is not known", told)
	}
}

func (f *sharedFleet) testNothingLeft(t *testing.T) {
	probes := func(host *testbed.Host) int {
		pids, err := host.PIDs(probeProcess)
		if err != nil {
			t.Fatal(err)
		}
		return len(pids)
	}
	for _, host := range []*testbed.Host{f.shared, f.spare} {
		if n := probes(host); n != 1 {
			t.Errorf("%d shells tell the load of %s", n, host.Name())
		}
	}
	if n := probes(f.forced); n != 0 {
		t.Errorf("%d shells run on a host that runs none", n)
	}
	check := f.proxy.Host().MustShell(t, world.Binary+" check --connect "+world.ConfigFile)
	wantText(t, "check --connect", check, "GiB free on /nix/store", "its load cannot be seen, so it is used by its slots alone")
	if err := f.proxy.Kill(); err != nil { // which says no goodbye
		t.Fatal(err)
	}
	for _, host := range []*testbed.Host{f.shared, f.spare} {
		eventually(t, "no shell is left on "+host.Name(), 10*time.Second, func() bool { return probes(host) == 0 })
	}
}
