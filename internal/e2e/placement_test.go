package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

const otherSystem = "riscv64-linux"

// Systems of the park, none of which needs the machine to be of its kind: builds
// are shell scripts.
const (
	intel   = "x86_64-linux"
	intel32 = "i686-linux"
	arm     = "aarch64-linux"
)

// A park is a client and builders that differ in what they can do. It is common
// to the tests of where builds go.
type park struct {
	proxy  *world.Proxy
	client *testbed.Host
	old    *testbed.Host // a client of Nix 2.8
	key    testbed.Key

	// plain builds for both Intel systems, and emulates ARM if somebody says so;
	// the others are for one system each.
	plain, armed, virtual, tester *testbed.Host
	// kept takes only what is big-parallel. It is the fastest and roomiest: whoever
	// does not look at features takes it.
	kept *testbed.Host
}

var commonPark common[*park]

func startPark(t *testing.T) *park {
	t.Helper()
	return commonPark.get(t, func(t *testing.T, bed *testbed.Bed) (*park, *world.Proxy) {
		key := bed.UserKey("alice")
		builder := func(name, system string, features ...string) testbed.HostSpec {
			return testbed.HostSpec{Name: name, Kind: testbed.Builder, System: system, MaxJobs: 4, Features: features}
		}
		plain := builder("plain", intel, "benchmark")
		plain.ExtraPlatforms = []string{intel32, arm}
		hosts := bed.MustStart(t,
			plain, builder("armed", arm), builder("virtual", intel, "kvm"), builder("tester", intel, "nixos-test"), builder("kept", intel, "big-parallel"),
			testbed.HostSpec{Name: "client", Kind: testbed.Client, System: intel, Keys: []testbed.Key{key}},
			testbed.HostSpec{Name: "old", Kind: testbed.Client, System: intel, Nix: testbed.Nix28, Keys: []testbed.Key{key}})
		p := &park{key: key, plain: hosts[0], armed: hosts[1], virtual: hosts[2], tester: hosts[3], kept: hosts[4], client: hosts[5], old: hosts[6]}
		p.proxy = startCommonProxy(t, bed, world.ProxySpec{
			Builders: []world.Builder{
				{Host: p.plain, MaxJobs: 4, Systems: []string{intel, intel32}, Features: []string{"benchmark"}},
				{Host: p.armed, MaxJobs: 4, Systems: []string{arm}},
				{Host: p.virtual, MaxJobs: 4, Systems: []string{intel}, Features: []string{"kvm"}},
				{Host: p.tester, MaxJobs: 4, Systems: []string{intel}, Features: []string{"nixos-test"}},
				{Host: p.kept, MaxJobs: 8, Systems: []string{intel}, SpeedFactor: 10, MandatoryFeatures: []string{"big-parallel"}},
			},
			Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		})
		return p, p.proxy
	})
}

// One entry of a machines file, with several systems and the numbers of the NixOS wiki,
// stands for all builders, whatever they are. Guards against clients that must
// know which builder is for what.
func TestS14OneEntryForSeveralSystems(t *testing.T) {
	p := startPark(t)
	for _, client := range []*testbed.Host{p.client, p.old} {
		t.Run("with "+client.Nix(), func(t *testing.T) { p.testOneEntry(t, client) })
	}
	t.Run("two systems share one upload", p.testSharedUpload)
}

func (p *park) testOneEntry(t *testing.T, client *testbed.Host) {
	writeMachinesLine(t, client, []string{"ssh-ng://proxy", intel + "," + arm + "," + intel32, p.key.File(),
		"3", "2", "nixos-test,benchmark,big-parallel,kvm", "-", "-"})
	fits := map[string][]*testbed.Host{intel: {p.plain, p.virtual, p.tester}, intel32: {p.plain}, arm: {p.armed}}
	var all []testbed.Derivation
	var names []string
	for system := range fits {
		for n := range 2 {
			name := fmt.Sprintf("%s-%d-%s", system, n, word(client.Nix()))
			names = append(names, name)
			all = append(all, testbed.Derivation{Name: name, System: system})
		}
	}
	startScript(t, client, buildScript(writeExpression(t, client, all...), names)+" -j0").mustSucceed(t)
	for _, d := range all {
		p.wantBuilt(t, d.Name, fits[d.System]...)
	}
}

// Guards against a client's line being asked to carry the same input for each
// builder.
func (p *park) testSharedUpload(t *testing.T) {
	const size = 8 << 20
	relay, err := p.client.Relay(testbed.RelaySpec{Port: 22, Target: "proxy:22"})
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	machine := p.proxy.Machine(p.key)
	machine.Store = "ssh-ng://" + p.client.Name()
	machine.HostKey = hostKeyField(p.proxy)
	setMachines(t, p.client, machine)

	p.client.MustShell(t, fmt.Sprintf("head -c %d /dev/urandom >/root/input", size))
	file := writeExpression(t, p.client,
		testbed.Derivation{Name: "for-intel", Sources: []string{"/root/input"}, KeepInputs: true, System: intel32},
		testbed.Derivation{Name: "for-arm", Sources: []string{"/root/input"}, KeepInputs: true, System: arm})
	startBuild(t, p.client, file, []string{"for-intel", "for-arm"}).mustSucceed(t)

	p.wantBuilt(t, "for-intel", p.plain)
	p.wantBuilt(t, "for-arm", p.armed)
	to, _ := relay.Bytes()
	if to < size || to > size*3/2 {
		t.Errorf("the client sent %d bytes for an input of %d, which two builders needed", to, size)
	}
	for _, b := range []*testbed.Host{p.plain, p.armed} {
		b.MustShell(t, "nix-store --verify-path /nix/store/*-input")
	}
}

// hostKeyField is the proxy's host key for a client that knows it by another
// name.
func hostKeyField(p *world.Proxy) string { return world.MachinesField(p.HostKey()) }

// wantBuilt wants that a derivation was built once, on one of some builders.
func (p *park) wantBuilt(t *testing.T, name string, on ...*testbed.Host) {
	t.Helper()
	got := builtOn(p.proxy, name)
	at := slices.IndexFunc(on, func(h *testbed.Host) bool { return slices.Equal(got, []string{h.Name()}) })
	if at < 0 {
		var want []string
		for _, h := range on {
			want = append(want, h.Name())
		}
		t.Errorf("%s was built on %q, want one of %q once", name, got, want)
		return
	}
	left := on[at].MustShell(t, "ls /nix/store")
	wantText(t, "the store of "+on[at].Name(), left, "-"+name+"\n")
}

// A builder's mandatory features keep plain builds away, its missing ones those
// that need them, though the client's one line has the union of all. Guards
// against routing by what the client's line says.
func TestS15FeaturesKeepBuildsAway(t *testing.T) {
	p := startPark(t)
	setMachines(t, p.client, p.proxy.Machine(p.key))
	plain := testbed.Numbered(9, testbed.Derivation{Name: "plain", System: intel, Sleep: 200 * time.Millisecond})
	both := testbed.Derivation{Name: "big", System: intel, RequiredFeatures: []string{"big-parallel"}}
	virtual := testbed.Numbered(3, testbed.Derivation{Name: "virtual", System: intel, RequiredFeatures: []string{"kvm"}})
	all := slices.Concat(plain, virtual, []testbed.Derivation{both})
	startBuild(t, p.client, writeExpression(t, p.client, all...), namesOf(all)).mustSucceed(t)
	for _, d := range plain {
		p.wantBuilt(t, d.Name, p.plain, p.virtual, p.tester)
	}
	for _, d := range virtual {
		p.wantBuilt(t, d.Name, p.virtual)
	}
	p.wantBuilt(t, both.Name, p.kept)
}

func namesOf(all []testbed.Derivation) []string {
	names := make([]string, len(all))
	for i, d := range all {
		names[i] = d.Name
	}
	return names
}

// Each feature of the NixOS wiki's table finds the builder that has it. Guards against
// features that only some words are known of.
func TestS20FeatureTableRoutes(t *testing.T) {
	p := startPark(t)
	for _, client := range []*testbed.Host{p.client, p.old} {
		t.Run("with "+client.Nix(), func(t *testing.T) {
			setMachines(t, client, p.proxy.Machine(p.key))
			has := map[string]*testbed.Host{"kvm": p.virtual, "nixos-test": p.tester, "big-parallel": p.kept, "benchmark": p.plain}
			var all []testbed.Derivation
			for feature := range has {
				all = append(all, testbed.Derivation{Name: "needs-" + feature + "-" + word(client.Nix()), System: intel, RequiredFeatures: []string{feature}})
			}
			startBuild(t, client, writeExpression(t, client, all...), namesOf(all)).mustSucceed(t)
			for _, d := range all {
				p.wantBuilt(t, d.Name, has[d.RequiredFeatures[0]])
			}
		})
	}
}

// The client's user reads at once, without -v, which builders there are and what
// each lacks, in the words that the proxy has for those who ask it. Guards against
// builds that wait for a builder which will never come, and against users who are
// told to read a debug log.
func TestS31UserReadsWhyNobodyBuilds(t *testing.T) {
	p := startPark(t)
	reasons := map[string]string{"plain": "lacks feature quantum", "virtual": "lacks feature quantum", "tester": "lacks feature quantum",
		"armed": "system is " + arm + ", not " + intel, "kept": "needs mandatory feature big-parallel"}
	why := p.client.MustShell(t, "ssh -i "+p.key.File()+" nix@proxy why "+intel+" quantum")
	for _, client := range []*testbed.Host{p.client, p.old} {
		for _, scheme := range protocols {
			t.Run(scheme+" with "+client.Nix(), func(t *testing.T) {
				log := p.refusedLog(t, client, scheme)
				for name, reason := range reasons {
					for what, text := range map[string]string{"the client's log": log, "the answer to why": why} {
						if !lineWith(text, name+": ", reason) {
							t.Errorf("%s has no line that says of %s: %s\n%s", what, name, reason, text)
						}
					}
				}
			})
		}
	}
}

// refusedLog is what a client says about a build that nobody can do. The client's
// own line promises the feature, or it would not even ask.
func (p *park) refusedLog(t *testing.T, client *testbed.Host, scheme string) (log string) {
	t.Helper()
	machine := p.proxy.Machine(p.key)
	machine.Store = scheme + "://proxy"
	machine.Features = append(machine.Features, "quantum")
	setMachines(t, client, machine)
	mark := p.proxy.Mark()
	entangled := testbed.Derivation{Name: "entangled", System: intel, RequiredFeatures: []string{"quantum"}}
	log = startBuild(t, client, writeExpression(t, client, entangled), []string{entangled.Name}).mustFail(t)
	wantText(t, "the client's log", log, "quantum", entangled.Name)
	login := waitLine(t, p.proxy, mark, world.Message("ssh login"))
	refused := waitLine(t, p.proxy, mark, world.Message("no builder", "drv", entangled.Name))
	if took := refused.Time.Sub(login.Time); took > 5*time.Second {
		t.Errorf("the refusal came %v after the login", took)
	}
	if got := builtOn(p.proxy, entangled.Name); len(got) != 0 {
		t.Errorf("it was built on %q", got)
	}
	return log
}

// A builder that emulates a system takes its builds when the real ones have no
// slot, and not before. Guards against one speed for all systems of a builder.
func TestS38EmulatedSystemIsTheSecondChoice(t *testing.T) {
	p := startPark(t)
	withPolicy(t, p.proxy, func(spec *world.ProxySpec) {
		// Much the faster machine, but for ARM.
		spec.Builders[0].SystemSpeeds = map[string]float64{intel: 1, intel32: 1, arm: 0.1}
		spec.Builders[0].SpeedFactor = 2
	})
	setMachines(t, p.client, p.proxy.Machine(p.key))
	fast := p.startHeld(t, "fast", intel, 1)
	awaitBuilds(t, p.plain, 1, patience)
	const slots = 4
	native := p.startHeld(t, "native", arm, slots)
	awaitBuilds(t, p.armed, slots, patience)
	if n := runningBuilds(t, p.plain); n != 1 {
		t.Errorf("%d builds run on %s, which emulates while the real thing has slots", n, p.plain.Name())
	}
	emulated := p.startHeld(t, "emulated", arm, 1)
	awaitBuilds(t, p.plain, 2, patience)
	for _, b := range []*testbed.Host{p.armed, p.plain} {
		openGate(t, b, "all")
	}
	for _, r := range []*running{fast, native, emulated} {
		r.mustSucceed(t)
	}
	said := p.proxy.Host().MustShell(t, world.Binary+" check --host proxy "+world.ConfigFile)
	wantText(t, "what check says", said, arm+" (speed 0.1)")
}

// startHeld has builds of a system begin that end when the gate called all is
// opened on their builder.
func (p *park) startHeld(t *testing.T, name, system string, n int) *running {
	t.Helper()
	all := testbed.Numbered(n, testbed.Derivation{Name: name, System: system, Script: "while test ! -e /tmp/gate.all; do sleep 0.05; done"})
	return startBuild(t, p.client, writeExpression(t, p.client, all...), namesOf(all))
}

// lineWith reports whether a line of text has all parts.
func lineWith(text string, parts ...string) bool {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return true
		}
	}
	return false
}
