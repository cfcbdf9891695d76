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

// wantFails wants that a script on a host fails, and returns what it said.
func wantFails(t *testing.T, host *testbed.Host, script string) (said string) {
	t.Helper()
	return startScript(t, host, script).mustFail(t)
}

// A builder whose sshd gives its sessions a PATH without Nix is of no use to Nix
// itself and works through the proxy, whether the policy says where the programs
// are or not. Guards against guides that ask for a line in the builder's
// sshd_config.
func TestS09BuilderWithoutPathWorks(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "bare", Kind: testbed.Builder, SSHD: []string{"SetEnv PATH=/nonexistent"},
			Authorize: map[string][]testbed.Key{"root": {key}, testbed.TrustedAccount: {key}}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	bare, client := hosts[0], hosts[1]
	for _, scheme := range protocols {
		// Root's shell is bash, whose words the NixOS wiki quotes; that of the other is dash.
		for account, words := range map[string]string{"root": "command not found", testbed.TrustedAccount: "not found"} {
			ping := fmt.Sprintf("nix store ping --store '%s://%s@bare?ssh-key=%s'", scheme, account, key.File())
			wantText(t, "the direct way", wantFails(t, client, ping), words)
		}
	}

	program := map[string]string{"ssh-ng": "/usr/bin/nix-daemon", "ssh": "/usr/bin/nix-store"}
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: bare}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	for _, up := range protocols {
		for how, extra := range map[string][]string{"found": nil, "configured": {"remote_program: " + program[up]}} {
			t.Run(how+" by "+up, func(t *testing.T) {
				withPolicy(t, proxy, func(spec *world.ProxySpec) {
					spec.Builders[0].Extra = append([]string{"protocol: " + up}, extra...)
				})
				for _, down := range protocols {
					client.MustShell(t, "nix store ping --store "+storeURI(down, key))
				}
				build(t, client, testbed.Derivation{Name: how + "-by-" + up})
			})
		}
	}
}

// A key with role full is trusted as a trusted user is: its builds are built as
// they come. A builder that does not trust the proxy's account gets nothing, and
// whoever wanted it reads which account of which builder is to be trusted, by
// either protocol on either side. Guards against "lacks a signature by a trusted
// key", which says neither whose nor where.
func TestS13UserReadsWhoIsNotTrusted(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	specs := []testbed.HostSpec{
		{Name: "wary-ssh-ng", Kind: testbed.Builder, System: "riscv64-linux"},
		{Name: "wary-ssh", Kind: testbed.Builder, System: "riscv32-linux"},
	}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{key}})
	}
	hosts := bed.MustStart(t, specs...)
	wary, clients := hosts[:2], hosts[2:]
	spec := func(account string) world.ProxySpec {
		return world.ProxySpec{
			Builders: []world.Builder{
				{Host: wary[0], Account: account, Systems: []string{"riscv64-linux"}},
				{Host: wary[1], Account: account, Systems: []string{"riscv32-linux"}, Extra: []string{"protocol: ssh"}},
			},
			Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		}
	}
	proxy := startProxy(t, bed, spec(testbed.GuestAccount))
	derivation := func(down string, client *testbed.Host, system string) testbed.Derivation {
		return testbed.Derivation{Name: "wanted-" + down + "-" + client.Name() + "-" + system, System: system,
			Sources: []string{"/etc/hostname"}, KeepInputs: true}
	}
	each := func(t *testing.T, do func(t *testing.T, client, builder *testbed.Host, d testbed.Derivation)) {
		for _, client := range clients {
			for _, down := range protocols {
				machine := proxy.Machine(key)
				machine.Store = down + "://proxy"
				setMachines(t, client, machine)
				for i, system := range []string{"riscv64-linux", "riscv32-linux"} {
					t.Run(fmt.Sprintf("%s by %s on %s", client.Nix(), down, wary[i].Name()), func(t *testing.T) {
						do(t, client, wary[i], derivation(down, client, system))
					})
				}
			}
		}
	}
	t.Run("not trusted", func(t *testing.T) {
		each(t, func(t *testing.T, client, builder *testbed.Host, d testbed.Derivation) {
			log := startBuild(t, client, writeExpression(t, client, d), []string{d.Name}).mustFail(t)
			if !lineWith(log, testbed.GuestAccount, builder.Name(), "trusted-users") {
				t.Errorf("no line says which account must be in trusted-users of which builder:\n%s", log)
			}
		})
		for _, b := range wary {
			if store := b.MustShell(t, "ls /nix/store"); strings.Contains(store, "wanted") {
				t.Errorf("%s got something to build: %s", b.Name(), store)
			}
		}
	})
	t.Run("trusted", func(t *testing.T) {
		if err := proxy.Reload(t.Context(), spec(testbed.TrustedAccount)); err != nil {
			t.Fatal(err)
		}
		each(t, func(t *testing.T, client, builder *testbed.Host, d testbed.Derivation) {
			startBuild(t, client, writeExpression(t, client, d), []string{d.Name}).mustSucceed(t)
			if got := builtOn(proxy, d.Name); !slices.Equal(got, []string{builder.Name()}) {
				t.Errorf("built on %q, want %s once", got, builder.Name())
			}
		})
	})
}

// A builder may be a virtual machine on the proxy's own host, behind a port of
// localhost, with an account, a key and a host key of its own. Guards against
// taking "localhost" for the proxy's machine, as Nix does, and against builders
// that are told apart by name alone.
func TestS37BuilderBehindAPortOfLocalhost(t *testing.T) {
	const port = 31022
	bed := testbed.ForTest(t)
	key, opens := bed.UserKey("alice"), bed.UserKey("opens-the-virtual-machine")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "other", Kind: testbed.Builder, System: otherSystem},
		testbed.HostSpec{Name: "virtual", Kind: testbed.Builder, Authorize: map[string][]testbed.Key{testbed.TrustedAccount: {opens}}},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	other, virtual, client := hosts[0], hosts[1], hosts[2]
	spec := world.ProxySpec{
		Builders:   []world.Builder{{Host: other, Systems: []string{otherSystem}}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	}
	proxy := startProxy(t, bed, spec)
	if _, err := proxy.Host().Relay(testbed.RelaySpec{Port: port, Target: "virtual:22"}); err != nil {
		t.Fatal(err)
	}
	reload := func(hostKeyOf string) {
		more := world.Builder{Host: virtual, Address: fmt.Sprintf("localhost:%d", port), Key: opens, HostKeys: []testbed.Key{bed.HostKey(hostKeyOf)}}
		with := spec
		with.Builders = append(slices.Clone(spec.Builders), more)
		if err := proxy.Reload(t.Context(), with); err != nil {
			t.Fatal(err)
		}
	}
	// The key that the proxy must not take: that of the builder on port 22.
	reload("other")
	setMachines(t, client, proxy.Machine(key))
	log := startBuild(t, client, writeExpression(t, client, testbed.Derivation{Name: "early"}), []string{"early"}).mustFail(t)
	wantText(t, "the log of a build on a builder with another host key", log, "virtual: down: it shows", "not on file")

	reload("virtual")
	for _, d := range []struct {
		derivation testbed.Derivation
		on         *testbed.Host
	}{
		{testbed.Derivation{Name: "in-the-virtual-machine", Sources: []string{"/etc/hostname"}, Sleep: 100 * time.Millisecond}, virtual},
		{testbed.Derivation{Name: "elsewhere", System: otherSystem}, other},
	} {
		build(t, client, d.derivation)
		wantText(t, "the store of "+d.on.Name(), d.on.MustShell(t, "ls /nix/store"), "-"+d.derivation.Name+"\n")
	}
	sshd, err := virtual.Log("sshd")
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, "the log of the virtual machine's sshd", sshd, "Accepted publickey for "+testbed.TrustedAccount, fingerprint(opens))
}
