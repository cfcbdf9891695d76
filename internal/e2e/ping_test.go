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

// A blackout is a proxy all of whose builders are down: one is switched off, the
// other one's sshd is gone. Before that, kept was built and came to the cache.
type blackout struct {
	proxy   *world.Proxy
	clients map[string]*testbed.Host // by version of Nix
	// alice is served all the same; bob is turned away, so that his Nix builds by
	// itself.
	alice, bob testbed.Key
	kept       string
}

var commonBlackout common[*blackout]

func startBlackout(t *testing.T) *blackout {
	t.Helper()
	return commonBlackout.get(t, newBlackout)
}

func newBlackout(t *testing.T, bed *testbed.Bed) (*blackout, *world.Proxy) {
	b := &blackout{clients: map[string]*testbed.Host{}, alice: bed.UserKey("alice"), bob: bed.UserKey("bob")}
	specs := []testbed.HostSpec{{Name: "dark", Kind: testbed.Builder}, {Name: "deaf", Kind: testbed.Builder}}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{b.alice, b.bob}})
	}
	hosts := bed.MustStart(t, specs...)
	for i, v := range versions {
		b.clients[v] = hosts[2+i]
	}
	b.proxy = startCommonProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{{Host: hosts[0]}, {Host: hosts[1]}},
		Principals: []world.Principal{
			{Name: "alice", Keys: []testbed.Key{b.alice}},
			{Name: "bob", Keys: []testbed.Key{b.bob}, Extra: []string{"no_builder: refuse"}},
		},
	})
	first := b.clients[versions[0]]
	setMachines(t, first, b.proxy.Machine(b.alice))
	paths, _ := build(t, first, testbed.Derivation{Name: "kept"})
	b.kept = paths[0]
	b.turnOff(t, hosts[0], hosts[1])
	return b, b.proxy
}

// turnOff takes the builders away and waits until the proxy knows.
func (b *blackout) turnOff(t *testing.T, dark, deaf *testbed.Host) {
	t.Helper()
	mark := b.proxy.Mark()
	deaf.MustShell(t, "pkill sshd")
	if err := dark.Stop(); err != nil {
		t.Fatal(err)
	}
	// Whether a builder is there shows when somebody wants it, be there connections
	// to it or not.
	time.Sleep(2 * time.Second)
	client := b.clients[versions[0]]
	run := startBuild(t, client, writeExpression(t, client, testbed.Derivation{Name: "probe"}), []string{"probe"})
	wantText(t, "the first log without builders", run.mustFail(t), dark.Name(), deaf.Name())
	b.wantSoon(t, "the first build without builders", run)
	for _, builder := range []*testbed.Host{dark, deaf} {
		waitLine(t, b.proxy, mark, world.Message("builder is down", "builder", builder.Name()))
	}
}

// wantSoon wants that a build failed within the time that is promised.
func (b *blackout) wantSoon(t *testing.T, what string, run *running) {
	t.Helper()
	if run.took > 5*time.Second {
		t.Errorf("%s failed after %v", what, run.took)
	}
}

// machine is the proxy in a client's machines file, by either scheme.
func (b *blackout) machine(scheme string, key testbed.Key) testbed.Machine {
	m := b.proxy.Machine(key)
	m.Store = scheme + "://proxy"
	return m
}

func storeURI(scheme string, key testbed.Key) string {
	return fmt.Sprintf("'%s://proxy?ssh-key=%s'", scheme, key.File())
}

// What the first test in the NixOS wiki asks needs no builder, nor does anything that the
// cache has. Guards against sessions that wait for a builder before they know what
// the client wants, and against clients that hang when nobody can build for them.
func TestS04PingNeedsNoBuilder(t *testing.T) {
	b := startBlackout(t)
	for _, v := range versions {
		t.Run("ping by "+v, func(t *testing.T) { b.testPing(t, v) })
	}
	t.Run("questions", b.testQuestions)
	for _, scheme := range protocols {
		t.Run("the cache over "+scheme, func(t *testing.T) { b.testCache(t, scheme) })
	}
}

// Who can have nothing built learns it at once: as a failure that names the
// builders, or in the handshake, if his Nix is to build by itself then. Guards
// against builds that hang on builders which are away, and against a fall-back that
// Nix does not know.
func TestS23NobodyBuildsAndSaysSo(t *testing.T) {
	b := startBlackout(t)
	for _, scheme := range protocols {
		t.Run("a build over "+scheme, func(t *testing.T) { b.testBuild(t, scheme) })
		t.Run("turned away over "+scheme, func(t *testing.T) { b.testTurnedAway(t, scheme) })
	}
}

func (b *blackout) testPing(t *testing.T, version string) {
	const times = 9
	client := b.clients[version]
	for _, scheme := range protocols {
		var took []time.Duration
		for range times {
			run := startScript(t, client, "nix store ping --store "+storeURI(scheme, b.alice))
			run.mustSucceed(t)
			took = append(took, run.took)
		}
		slices.Sort(took)
		t.Logf("ping over %s by %s: p50 %v", scheme, version, took[times/2].Round(time.Millisecond))
	}
}

// testQuestions wants that a person learns what is wrong.
func (b *blackout) testQuestions(t *testing.T) {
	client := b.clients[testbed.Nix234]
	ask := "ssh -i " + b.alice.File() + " -o IdentitiesOnly=yes proxy "
	status := client.MustShell(t, ask+"status")
	for _, builder := range []string{"dark", "deaf"} {
		if !lineWith(status, builder, "down") {
			t.Errorf("no line says that %s is down:\n%s", builder, status)
		}
	}
	wantText(t, "ssh proxy why", client.MustShell(t, ask+"why "+testbed.NativeSystem), "dark", "deaf", "down")
	wantText(t, "ssh proxy check", client.MustShell(t, ask+"check"), "0 of 2 up")
}

// testCache reads what the proxy has, and adds to it.
func (b *blackout) testCache(t *testing.T, scheme string) {
	for _, v := range versions {
		client, store := b.clients[v], storeURI(scheme, b.alice)
		wantText(t, "nix path-info", client.MustShell(t, "nix path-info --store "+store+" "+b.kept), b.kept)
		client.MustShell(t, "test ! -e "+b.kept+" || nix-store --delete "+b.kept)
		client.MustShell(t, "nix copy --no-check-sigs --from "+store+" "+b.kept+" && nix-store --verify-path "+b.kept)
		name := scheme + "-" + word(v)
		added := strings.TrimSpace(client.MustShell(t, "echo "+name+" >/root/"+name+" && nix-store --add /root/"+name))
		client.MustShell(t, "nix copy --no-check-sigs --to "+store+" "+added+" && nix path-info --store "+store+" "+added)
	}
}

// testBuild wants that whoever is served learns at once who could have built it, be
// there a place for the build on the client or not.
func (b *blackout) testBuild(t *testing.T, scheme string) {
	for _, v := range versions {
		for _, jobs := range []string{"0", "1"} {
			client := b.clients[v]
			setMachines(t, client, b.machine(scheme, b.alice))
			name := "unbuilt-" + scheme + "-j" + jobs
			run := startScript(t, client, buildScript(writeExpression(t, client, testbed.Derivation{Name: name}), []string{name})+" -j"+jobs)
			log := run.mustFail(t)
			wantText(t, "the log of "+v+" with -j"+jobs, log, "dark", "deaf")
			b.wantSoon(t, v+" with -j"+jobs, run)
		}
	}
}

// testTurnedAway wants that the refusal comes where the client still has a choice.
func (b *blackout) testTurnedAway(t *testing.T, scheme string) {
	for _, v := range versions {
		client := b.clients[v]
		setMachines(t, client, b.machine(scheme, b.bob))
		name := "own-" + scheme
		file := writeExpression(t, client, testbed.Derivation{Name: name})
		log := startScript(t, client, buildScript(file, []string{name})+" -j0").mustFail(t)
		wantText(t, "the log of "+v+" that may not build", log, "no builder")
		startScript(t, client, buildScript(file, []string{name})+" -j1").mustSucceed(t)
		if got := builtOn(b.proxy, name); len(got) != 0 {
			t.Errorf("%s of %s was built on %q", name, v, got)
		}
		res, err := client.Shell(t.Context(), "nix store ping --store "+storeURI(scheme, b.bob))
		if err != nil {
			t.Fatal(err)
		}
		if res.Status == 0 {
			t.Errorf("a ping of %s whose key is turned away says that all is well:\n%s", v, res.Stdout+res.Stderr)
		}
	}
}
