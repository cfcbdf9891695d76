package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Ctrl-C on the client ends the build on the builder: with a current Nix there in
// seconds, with an older one no later than without the proxy. Guards against builds
// that run on for nobody, in whose way the next ones are.
func TestInterruptedClientEndsItsBuild(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	specs := []testbed.HostSpec{{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}}}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "builder-" + word(v), Kind: testbed.Builder, Nix: v, Features: []string{word(v)},
			Authorize: map[string][]testbed.Key{testbed.TrustedAccount: {key}}})
	}
	hosts := bed.MustStart(t, specs...)
	client, builders := hosts[0], hosts[1:]
	spec := world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}}}
	for _, b := range builders {
		spec.Builders = append(spec.Builders, world.Builder{Host: b, Features: []string{word(b.Nix())}})
	}
	proxy := startProxy(t, bed, spec)
	for _, through := range []string{"nix-build alone", "the client's daemon"} {
		for _, b := range builders {
			t.Run(b.Nix()+" by "+through, func(t *testing.T) {
				i := interruption{client: client, builder: b, daemon: through != "nix-build alone"}
				direct := testbed.Machine{Store: "ssh-ng://" + testbed.TrustedAccount + "@" + b.Name(), Key: key, Features: []string{word(b.Nix())}}
				i.compare(t, direct, proxy.Machine(key))
			})
		}
	}
}

// An interruption is a client that is interrupted while its build runs.
type interruption struct {
	client, builder *testbed.Host
	// daemon: nix-build leaves the build to the client's own nix-daemon.
	daemon bool
}

// How long builds are waited for to end. The daemon of 2.34.8 needs a moment to kill
// one; those of older versions may not do it at all.
const (
	soonEnded  = 10 * time.Second
	neverEnded = 20 * time.Second
)

func (i interruption) compare(t *testing.T, direct, proxied testbed.Machine) {
	alone, aloneEnded := i.measure(t, direct, "direct")
	took, ended := i.measure(t, proxied, "proxied")
	t.Logf("the build was gone after %v (%v), without the proxy after %v (%v)", took, ended, alone, aloneEnded)
	switch {
	case i.builder.Nix() == testbed.Nix234 && (!ended || took > soonEnded):
		t.Errorf("the build still ran after %v", soonEnded)
	case aloneEnded && (!ended || took > alone+soonEnded):
		t.Errorf("the build still ran %v later than without the proxy", soonEnded)
	}
}

// measure returns after what time no build ran any more, and whether that was by
// itself.
func (i interruption) measure(t *testing.T, machine testbed.Machine, name string) (took time.Duration, ended bool) {
	t.Helper()
	setMachines(t, i.client, machine)
	name = strings.Join([]string{name, word(i.builder.Nix()), map[bool]string{true: "daemon", false: "alone"}[i.daemon]}, "-")
	d := gated(name)
	d.RequiredFeatures = []string{word(i.builder.Nix())}
	file := writeExpression(t, i.client, d)
	script := buildScript(file, []string{d.Name})
	if i.daemon {
		script = "export NIX_REMOTE=daemon; " + script
	}
	run := startScript(t, i.client, script)
	awaitBuilds(t, i.builder, 1, patience)
	since := time.Now()
	i.interrupt(t)
	for end := since.Add(neverEnded); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ended = runningBuilds(t, i.builder) == 0; ended {
			break
		}
	}
	took = time.Since(since)
	run.wait(t)
	openGate(t, i.builder, d.Name)
	awaitBuilds(t, i.builder, 0, patience)
	return took, ended
}

// interrupt does what a terminal does at Ctrl-C.
func (i interruption) interrupt(t *testing.T) {
	t.Helper()
	pids, err := i.client.PIDs("^nix-build ")
	if err != nil || len(pids) == 0 {
		t.Fatalf("nobody to interrupt: %v", err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
	}
}
