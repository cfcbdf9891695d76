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

// A park is a client and builders that differ in what they can do.
type park struct {
	proxy               *world.Proxy
	client              *testbed.Host
	native, other, kept *testbed.Host
	key                 testbed.Key
}

func startPark(t *testing.T) *park {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "native", Kind: testbed.Builder, MaxJobs: 2, Features: []string{"kvm"}},
		testbed.HostSpec{Name: "other", Kind: testbed.Builder, MaxJobs: 2, System: otherSystem},
		testbed.HostSpec{Name: "kept", Kind: testbed.Builder, MaxJobs: 8, Features: []string{"big-parallel"}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	p := &park{native: hosts[0], other: hosts[1], kept: hosts[2], client: hosts[3], key: key}
	p.proxy = startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{
			{Host: p.native, MaxJobs: 2, Features: []string{"kvm"}},
			{Host: p.other, MaxJobs: 2, Systems: []string{otherSystem}},
			// The fastest and roomiest: whoever does not look at features takes it.
			{Host: p.kept, MaxJobs: 8, SpeedFactor: 10, MandatoryFeatures: []string{"big-parallel"}},
		},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	machine := p.proxy.Machine(key)
	machine.Features = append(machine.Features, "quantum") // the client is to ask for what nobody has
	setMachines(t, p.client, machine)
	return p
}

func TestBuildsLandWhereTheyCanRun(t *testing.T) {
	p := startPark(t)
	t.Run("two systems share one upload", p.testTwoSystems)
	t.Run("a mandatory feature keeps plain builds away", p.testMandatoryFeature)
	t.Run("what nobody can run fails at once", p.testNobodyCan)
}

// Guards against a client's line being asked to carry the same input for each
// builder, and against builds on a builder of another system.
func (p *park) testTwoSystems(t *testing.T) {
	const size = 8 << 20
	relay, err := p.client.Relay(testbed.RelaySpec{Port: 22, Target: "proxy:22"})
	if err != nil {
		t.Fatal(err)
	}
	machine := p.proxy.Machine(p.key)
	machine.Store = "ssh-ng://" + p.client.Name()
	machine.HostKey = hostKeyField(p.proxy)
	setMachines(t, p.client, machine)
	defer setMachines(t, p.client, p.proxy.Machine(p.key))

	p.client.MustShell(t, fmt.Sprintf("head -c %d /dev/urandom >/root/input", size))
	file := writeExpression(t, p.client,
		testbed.Derivation{Name: "for-native", Sources: []string{"/root/input"}, KeepInputs: true},
		testbed.Derivation{Name: "for-other", Sources: []string{"/root/input"}, KeepInputs: true, System: otherSystem})
	startBuild(t, p.client, file, []string{"for-native", "for-other"}).mustSucceed(t)

	p.wantBuilt(t, "for-native", p.native)
	p.wantBuilt(t, "for-other", p.other)
	to, _ := relay.Bytes()
	if to < size || to > size*3/2 {
		t.Errorf("the client sent %d bytes for an input of %d, which two builders needed", to, size)
	}
	for _, b := range []*testbed.Host{p.native, p.other} {
		b.MustShell(t, "nix-store --verify-path /nix/store/*-input")
	}
}

// hostKeyField is the proxy's host key for a client that knows it by another
// name.
func hostKeyField(p *world.Proxy) string { return world.MachinesField(p.HostKey()) }

func (p *park) wantBuilt(t *testing.T, name string, on *testbed.Host) {
	t.Helper()
	if got := builtOn(p.proxy, name); !slices.Equal(got, []string{on.Name()}) {
		t.Errorf("%s was built on %q, want %s once", name, got, on.Name())
	}
	left := on.MustShell(t, "ls /nix/store")
	wantText(t, "the store of "+on.Name(), left, "-"+name+"\n")
}

func (p *park) testMandatoryFeature(t *testing.T) {
	plain := testbed.Numbered(6, testbed.Derivation{Name: "plain", Sleep: 200 * time.Millisecond})
	big := testbed.Derivation{Name: "big", RequiredFeatures: []string{"big-parallel"}}
	virtual := testbed.Derivation{Name: "virtual", RequiredFeatures: []string{"kvm"}}
	file := writeExpression(t, p.client, append(plain, big, virtual)...)
	startBuild(t, p.client, file, []string{"plain1", "plain2", "plain3", "plain4", "plain5", "plain6", "big", "virtual"}).mustSucceed(t)
	for _, d := range plain {
		p.wantBuilt(t, d.Name, p.native)
	}
	p.wantBuilt(t, big.Name, p.kept)
	p.wantBuilt(t, virtual.Name, p.native)
}

// The client reads at once which builders there are and what each lacks. Guards
// against builds that wait for a builder which will never come.
func (p *park) testNobodyCan(t *testing.T) {
	machine := p.proxy.Machine(p.key)
	machine.Features = append(machine.Features, "quantum")
	setMachines(t, p.client, machine)
	mark := p.proxy.Mark()
	file := writeExpression(t, p.client, testbed.Derivation{Name: "entangled", RequiredFeatures: []string{"quantum"}})
	log := startBuild(t, p.client, file, []string{"entangled"}).mustFail(t)
	wantText(t, "the client's log", log, "quantum", "entangled")
	for name, lacks := range map[string]string{"native": "quantum", "other": testbed.NativeSystem, "kept": "quantum"} {
		if !lineWith(log, name+":", lacks) {
			t.Errorf("no line says that %s lacks %s:\n%s", name, lacks, log)
		}
	}
	login := waitLine(t, p.proxy, mark, world.Message("ssh login"))
	refused := waitLine(t, p.proxy, mark, world.Message("no builder", "drv", "entangled"))
	if took := refused.Time.Sub(login.Time); took > 5*time.Second {
		t.Errorf("the refusal came %v after the login", took)
	} else {
		t.Logf("the refusal came %v after the login", took)
	}
	if got := builtOn(p.proxy, "entangled"); len(got) != 0 {
		t.Errorf("it was built on %q", got)
	}
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
