package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

const daemonSocket = "/nix/var/nix/daemon-socket/socket"

// A machine serves itself: the daemon of the proxy's own host is a builder, by
// its socket. Builds come with inputs, log and both kinds of ends, and one that
// nobody waits for any more is killed before its slot is another's. Guards
// against a local builder that only looks like one.
func TestDaemonOfTheProxysHostBuilds(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			bed := testbed.ForTest(t)
			key := bed.UserKey("alice")
			client := bed.MustStart(t, testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})[0]
			spec := world.ProxySpec{
				Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
				Host:       testbed.HostSpec{Nix: v},
			}
			proxy := startProxy(t, bed, spec)
			startLocalDaemon(t, proxy.Host())
			useLocalDaemon(t, bed, proxy, spec)
			machine := proxy.Machine(key)
			machine.Systems, machine.MaxJobs = []string{testbed.NativeSystem}, 8
			setMachines(t, client, machine)

			check, err := proxy.Host().Shell(t.Context(), world.Binary+" check --connect "+world.ConfigFile)
			if err != nil || check.Status != 0 {
				t.Errorf("check: %v\n%s%s", err, check.Stdout, check.Stderr)
			}
			wantText(t, "what check says", check.Stdout, "Builder here at "+daemonSocket, v)

			dep := testbed.Derivation{Name: "dep", LogLines: 5}
			top := testbed.Derivation{Name: "top", Inputs: []string{"dep"}, LogLines: 2000, KeepInputs: true, OutputSize: 1 << 20, OutputFiles: 3}
			_, log := startBuild(t, client, writeExpression(t, client, dep, top), []string{"top"}).mustSucceed(t)
			wantLogLines(t, "the log of the second build", log[strings.LastIndex(log, "log line 1\n"):], 2000)
			if got := builtOn(proxy, "top"); len(got) != 1 || got[0] != "here" {
				t.Errorf("built on %q", got)
			}
			failing := testbed.Derivation{Name: "failing", Script: "echo my last words >&2", ExitStatus: 5}
			said := startBuild(t, client, writeExpression(t, client, failing), []string{"failing"}).mustFail(t)
			wantText(t, "the log of a failed build", said, "my last words", "exit code 5")

			endless := testbed.Derivation{Name: "endless", Sleep: time.Hour}
			run := startBuild(t, client, writeExpression(t, client, endless), []string{"endless"})
			awaitBuilds(t, proxy.Host(), 1, patience)
			mark := proxy.Mark()
			run.kill()
			awaitBuilds(t, proxy.Host(), 0, 20*time.Second)
			build(t, client, testbed.Derivation{Name: "after"}) // in the only slot
			for _, l := range proxy.LinesSince(mark) {
				if l.Msg == "builder's session did not end in order" {
					t.Errorf("%s", l.Raw)
				}
			}
		})
	}
}

// A daemon that does not trust the account which the proxy runs as is no
// builder, and the user reads what to do.
func TestDaemonOfTheProxysHostThatDoesNotTrustIt(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	client := bed.MustStart(t, testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})[0]
	spec := world.ProxySpec{
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Host:       testbed.HostSpec{NixConf: []string{"trusted-users = " + testbed.TrustedAccount}},
	}
	proxy := startProxy(t, bed, spec)
	machine := proxy.Machine(key)
	machine.Systems, machine.MaxJobs = []string{testbed.NativeSystem}, 8
	setMachines(t, client, machine)
	useLocalDaemon(t, bed, proxy, spec)
	refused := func(name string, words ...string) {
		t.Helper()
		d := testbed.Derivation{Name: name}
		wantText(t, "the refusal", startBuild(t, client, writeExpression(t, client, d), []string{name}).mustFail(t), words...)
	}
	refused("nobody-there", "unix://"+daemonSocket, "nix-daemon must run on this machine")
	mark := proxy.Mark()
	startLocalDaemon(t, proxy.Host())
	waitLine(t, proxy, mark, world.Message("builder is down", "reason", "trusted-users"))
	refused("not-trusted", "account 'root', as which the proxy runs", "trusted-users")
}

// startLocalDaemon starts nix-daemon on a host that has none of its own.
func startLocalDaemon(t *testing.T, host *testbed.Host) {
	t.Helper()
	startScriptFor(t, 10*time.Minute, host, "exec nix-daemon")
	eventually(t, "the daemon listens", patience, func() bool {
		res, err := host.Shell(t.Context(), "test -S "+daemonSocket)
		return err == nil && res.Status == 0
	})
}

// useLocalDaemon makes the daemon of the proxy's host its builder.
func useLocalDaemon(t *testing.T, bed *testbed.Bed, proxy *world.Proxy, spec world.ProxySpec) {
	t.Helper()
	builder := fmt.Sprintf("builders:\n  - name: here\n    address: unix://%s\n    systems: [%s]\n", daemonSocket, testbed.NativeSystem)
	policy := strings.Replace(spec.Policy(bed), "principals:\n", builder+"principals:\n", 1)
	if err := proxy.ReloadText(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
}
