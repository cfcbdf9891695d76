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

// What Nix's own tests of remote builds on NixOS show is shown here once more, with
// the proxy between: tests/nixos/remote-builds.nix by ssh:// on both sides, and
// remote-builds-ssh-ng.nix by ssh-ng://.

const hello686 = "i686-linux"

// hello is the build of those tests: it tells on which host it ran, and its second
// output refers to the first. Number 5 fails.
func hello(nr int) testbed.Derivation {
	script := `echo Hello
mkdir $out $foo
cat /proc/sys/kernel/hostname >$out/host
ln -s $out $foo/bar
sleep 1
exit 0`
	if nr == 5 {
		script = "echo FAIL\nexit 1"
	}
	return testbed.Derivation{Name: fmt.Sprintf("hello-%d", nr), System: hello686, Outputs: []string{"out", "foo"}, Script: script}
}

// A village has two builders with one slot each, two whose shells spoil the
// protocol, and a client whose own shell is no better.
type village struct {
	proxy   *world.Proxy
	client  *testbed.Host
	pair    []*testbed.Host // builder1 and builder2
	spoiled []*testbed.Host
	key     testbed.Key
	file    string // all hellos
}

// spoilers are start-up files of a shell, by the builder that has it.
var spoilers = map[string]string{
	"chatty": "echo Welcome to this machine",
	"curt":   "exit 3",
}

// badShell is what the client has in SHELL, which OpenSSH uses for LocalCommand.
const badShell = "/usr/local/bin/bad-shell"

// Guards against what Nix's maintainers found worth a test of their own: builders
// that fill up, fail, are unreachable, or greet before they speak.
func TestS34RemoteBuildsOfNixOS(t *testing.T) {
	v := startVillage(t)
	t.Run("a shell that is no shell", v.testBadShell)
	t.Run("one build", v.testOne)
	t.Run("two at once", v.testTwo)
	t.Run("a failure", v.testFailing)
	t.Run("a port in the host name", v.testPort)
	t.Run("shells that greet or leave", v.testSpoiled)
	t.Run("builder1 is blocked", v.testBlocked) // the last: it stays away
}

func startVillage(t *testing.T) *village {
	t.Helper()
	bed := testbed.ForTest(t)
	v := &village{key: bed.UserKey("alice")}
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder1", Kind: testbed.Builder, System: hello686},
		testbed.HostSpec{Name: "builder2", Kind: testbed.Builder, System: hello686, Nix: testbed.Nix226},
		testbed.HostSpec{Name: "chatty", Kind: testbed.Builder, System: hello686},
		testbed.HostSpec{Name: "curt", Kind: testbed.Builder, System: hello686},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{v.key}})
	v.pair, v.spoiled, v.client = hosts[:2], hosts[2:4], hosts[4]
	for _, host := range v.spoiled {
		if err := host.WriteFile(t.Context(), "/root/.bashrc", []byte(spoilers[host.Name()]+"\n")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.pair[1].Relay(testbed.RelaySpec{Port: 2222, Target: "builder2:22"}); err != nil {
		t.Fatal(err)
	}
	spec := world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{v.key}}}}
	for _, host := range hosts[:4] {
		b := world.Builder{Host: host, Account: "root", Systems: []string{hello686}, Extra: []string{"protocol: ssh"}}
		if host == v.pair[1] {
			b.Address = "builder2:2222"
		}
		spec.Builders = append(spec.Builders, b)
	}
	v.proxy = startProxy(t, bed, spec)
	if _, err := v.proxy.Host().Relay(testbed.RelaySpec{Port: 2222, Target: "proxy:22"}); err != nil {
		t.Fatal(err)
	}
	if err := bed.AddKnownHost("[proxy]:2222", v.proxy.HostKey()); err != nil {
		t.Fatal(err)
	}
	v.setStore(t, "ssh://root@proxy")
	v.file = writeExpression(t, v.client, hello(1), hello(2), hello(3), hello(4), hello(5), hello(6), hello(7), hello(8))
	return v
}

// setStore makes a URI the only line of the client's machines file, as
// nix.buildMachines would write it.
func (v *village) setStore(t *testing.T, uri string) {
	t.Helper()
	setMachines(t, v.client, testbed.Machine{Store: uri, Key: v.key, Systems: []string{hello686}, MaxJobs: 2})
}

func (v *village) build(t *testing.T, attributes ...string) *running {
	t.Helper()
	return startScript(t, v.client, "export SHELL="+badShell+"; "+buildScript(v.file, attributes))
}

// has are the builders of the pair whose store has a path.
func (v *village) has(t *testing.T, path string) []string {
	t.Helper()
	var names []string
	for _, b := range v.pair {
		res, err := b.Shell(t.Context(), "test -e "+path)
		if err != nil {
			t.Fatal(err)
		}
		if res.Status == 0 {
			names = append(names, b.Name())
		}
	}
	return names
}

// wantHello wants that an output is there, says where it was made, and is there too.
func (v *village) wantHello(t *testing.T, out string) (builder string) {
	t.Helper()
	builder = strings.TrimSpace(v.client.MustShell(t, "cat "+out+"/host"))
	if got := v.has(t, out); !slices.Equal(got, []string{builder}) {
		t.Errorf("%s says that it was made on %q and is on %q", out, builder, got)
	}
	return builder
}

func (v *village) testBadShell(t *testing.T) {
	if err := v.client.WriteFile(t.Context(), badShell, []byte("#!/bin/sh\necho Hello, I am a broken shell\n")); err != nil {
		t.Fatal(err)
	}
	v.client.MustShell(t, "chmod 755 "+badShell)
	said := v.client.MustShell(t, "SHELL="+badShell+" ssh -i "+v.key.File()+" -oLocalCommand=true -oPermitLocalCommand=yes proxy 'echo hello world'")
	wantText(t, "what ssh says with such a shell", said, "I am a broken shell", "hello world")
}

func (v *village) testOne(t *testing.T) {
	paths, log := v.build(t, "hello-1").mustSucceed(t)
	wantText(t, "the client's log", log, "Hello")
	v.wantHello(t, paths[0])
}

// The builders have one slot each, so two builds at once are on both.
func (v *village) testTwo(t *testing.T) {
	run := startScript(t, v.client, fmt.Sprintf(
		`SHELL=%s exec nix-store -r "$(nix-instantiate %[2]s -A hello-2)!out" "$(nix-instantiate %[2]s -A hello-3)!out"`, badShell, v.file))
	paths, _ := run.mustSucceed(t)
	if len(paths) != 2 {
		t.Fatalf("nix-store printed %q", paths)
	}
	if a, b := v.wantHello(t, paths[0]), v.wantHello(t, paths[1]); a == b {
		t.Errorf("both were built on %s", a)
	}
}

func (v *village) testFailing(t *testing.T) {
	log := v.build(t, "hello-5").mustFail(t)
	wantText(t, "the client's log", log, "FAIL", "exit code 1")
	if got := builtOn(v.proxy, "hello-5"); len(got) != 1 {
		t.Errorf("the failing build was tried on %q", got)
	}
}

// A port in the URI is understood by newer clients; the proxy's own line to
// builder2 has one too.
func (v *village) testPort(t *testing.T) {
	defer v.setStore(t, "ssh://root@proxy")
	for _, scheme := range protocols {
		v.setStore(t, scheme+"://root@proxy:2222")
		name := "port-" + scheme
		d := testbed.Derivation{Name: name, System: hello686}
		startBuild(t, v.client, writeExpression(t, v.client, d), []string{name}).mustSucceed(t)
	}
	if got := slices.Concat(builtOn(v.proxy, "hello-2"), builtOn(v.proxy, "hello-3")); !slices.Contains(got, "builder2") {
		t.Errorf("nothing was built behind the port of builder2, but on %q", got)
	}
}

// Builders whose shells spoil the protocol get nothing, and the admin reads what
// they said.
func (v *village) testSpoiled(t *testing.T) {
	for _, host := range v.spoiled {
		waitLine(t, v.proxy, 0, world.Message("builder is down", "builder", host.Name()))
		if store := host.MustShell(t, "ls /nix/store 2>/dev/null || true"); strings.Contains(store, "hello") {
			t.Errorf("%s has something: %s", host.Name(), store)
		}
	}
	waitLine(t, v.proxy, 0, world.Message("builder is down", "builder", "chatty", "reason", "Welcome to this machine"))
}

// Packets to builder1 are lost, and nobody is told: neither a proxy that has
// connections to it nor one that meets it for the first time may keep the builds.
func (v *village) testBlocked(t *testing.T) {
	if err := v.pair[0].Cut(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // so that what the builders said last is of some age
	v.testAwayFromFirst(t, "hello-4", "hello-6")
	if err := v.proxy.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.testAwayFromFirst(t, "hello-7", "hello-8")
}

func (v *village) testAwayFromFirst(t *testing.T, attributes ...string) {
	t.Helper()
	run := v.build(t, attributes...)
	paths, _ := run.mustSucceed(t)
	t.Logf("two builds took %v with a builder that does not answer", run.took)
	for _, out := range paths {
		if got := strings.TrimSpace(v.client.MustShell(t, "cat "+out+"/host")); got != "builder2" {
			t.Errorf("%s was made on %s", out, got)
		}
	}
}

// buildPhase is what a build writes for programs; phased writes it, and a greeting for
// people.
const buildPhase = `@nix {"action":"setPhase","phase":"buildPhase"}`

func phased(name string) testbed.Derivation {
	return testbed.Derivation{Name: name, System: hello686, Script: fmt.Sprintf(`if [ -n "$NIX_LOG_FD" ]; then echo '%s' >&$NIX_LOG_FD; fi
echo Hello
mkdir $out
cat /proc/sys/kernel/hostname >$out/host
exit 0`, buildPhase)}
}

// The phases that a build names are for programs: `nix log` has them, the terminal
// has not, as if there were no proxy. Nix 2.8 and ssh:// keep only what people read,
// here as there.
func TestS34PhasesAreKeptInTheLog(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	specs := []testbed.HostSpec{{Name: "builder", Kind: testbed.Builder, System: hello686,
		Authorize: map[string][]testbed.Key{testbed.TrustedAccount: {key}}}}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{key}})
	}
	hosts := bed.MustStart(t, specs...)
	builder, clients := hosts[0], hosts[1:]
	startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builder, Systems: []string{hello686}}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	for _, client := range clients {
		for _, scheme := range protocols {
			t.Run(client.Nix()+" by "+scheme, func(t *testing.T) {
				name := scheme + "-" + word(client.Nix())
				direct := keptLog(t, client, testbed.Machine{Store: scheme + "://nix@builder", Key: key, Systems: []string{hello686}}, "direct-"+name)
				kept := keptLog(t, client, testbed.Machine{Store: scheme + "://root@proxy", Key: key, Systems: []string{hello686}}, "phased-"+name)
				builder.MustShell(t, "cat /nix/store/*-phased-"+name+"/host")
				if has, had := strings.Contains(kept, buildPhase), strings.Contains(direct, buildPhase); had && !has {
					t.Errorf("the log that the client keeps lacks %s:\n%s", buildPhase, kept)
				}
				if scheme == "ssh-ng" && kept != direct {
					t.Errorf("the client keeps another log than without a proxy:\n%s\nand not\n%s", kept, direct)
				}
				if client.Nix() != testbed.Nix28 && scheme == "ssh-ng" {
					wantText(t, "the log that the client keeps", kept, buildPhase)
				}
			})
		}
	}
}

// keptLog has a build done through a line of the machines file, and returns the log
// of it that the client keeps.
func keptLog(t *testing.T, client *testbed.Host, machine testbed.Machine, name string) string {
	t.Helper()
	setMachines(t, client, machine)
	paths, log := build(t, client, phased(name))
	wantText(t, "the client's terminal", log, "Hello")
	if strings.Contains(log, "@nix") {
		t.Errorf("the terminal has what is for programs:\n%s", log)
	}
	kept := client.MustShell(t, "nix-store --read-log "+paths[0])
	wantText(t, "the log that the client keeps", kept, "Hello")
	return kept
}
