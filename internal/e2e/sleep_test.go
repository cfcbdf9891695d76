package e2e

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// powerFile is on the proxy's host: what its commands write there, the test does.
const powerFile = world.StateDir + "/power"

// power suspends hosts and brings them back, as a switch would that the proxy's
// commands reach.
type power struct {
	proxy *testbed.Host
	hosts map[string]*testbed.Host

	mu   sync.Mutex // guards what follows
	done []string
}

// startPower does what is written until the test ends.
func startPower(t *testing.T, proxy *testbed.Host, hosts ...*testbed.Host) *power {
	p := &power{proxy: proxy, hosts: map[string]*testbed.Host{}}
	for _, h := range hosts {
		p.hosts[h.Name()] = h
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			text, _ := proxy.ReadFile(ctx, powerFile) // not there before the first command
			p.obey(t, strings.Split(strings.TrimSpace(string(text)), "\n"))
			time.Sleep(100 * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		for _, h := range hosts {
			h.Thaw()
			h.Restore()
		}
	})
	return p
}

func (p *power) obey(t *testing.T, commands []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, command := range commands[min(len(p.done), len(commands)):] {
		what, name, ok := strings.Cut(command, " ")
		if !ok {
			return
		}
		host, errs := p.hosts[name], [2]error{}
		if what == "sleep" {
			if n := runningBuilds(t, host); n > 0 {
				t.Errorf("%s is put to sleep with %d builds", name, n)
			}
			errs = [2]error{host.Cut(), host.Freeze()}
		} else {
			time.Sleep(2 * time.Second) // as machines do
			errs = [2]error{host.Thaw(), host.Restore()}
		}
		for _, err := range errs {
			if err != nil {
				t.Errorf("%s: %v", command, err)
			}
		}
		p.done = append(p.done, command)
	}
}

func (p *power) obeyed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.done, ", ")
}

// powerCommand is one that a proxy runs: to "wake" or to "sleep".
func powerCommand(what string) string {
	return `["/bin/sh", "-c", "echo ` + what + ` $NIXBASTION_BUILDER >>` + powerFile + `"]`
}

// A machine that sleeps is woken by the build that needs it, by no question, and
// sleeps again when it was idle. Guards against builds that fail since their builder
// sleeps, against a machine that never sleeps, or does so under a build.
func TestSleepingBuilderIsWokenForABuild(t *testing.T) {
	t.Parallel() // it mostly waits
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "sleepy", Kind: testbed.Builder},
		testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})
	sleepy, client := hosts[0], hosts[1]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders: []world.Builder{{Host: sleepy, Extra: []string{
			"wake: {command: " + powerCommand("wake") + ", timeout: 1m}",
			"sleep: {command: " + powerCommand("sleep") + ", after: 3s}",
		}}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	setMachines(t, client, proxy.Machine(key))
	switches := startPower(t, proxy.Host(), sleepy)
	asleep := func(after string) {
		eventually(t, "the builder sleeps "+after, patience, func() bool {
			return strings.HasSuffix(switches.obeyed(), "sleep sleepy") && strings.Contains(status(t, proxy), "sleepy  asleep")
		})
	}
	asleep("when nobody needs it")
	client.MustShell(t, "nix --extra-experimental-features nix-command store ping --store "+storeURI("ssh-ng", key))
	time.Sleep(5 * time.Second) // in which it must not be woken
	if got := switches.obeyed(); got != "sleep sleepy" {
		t.Errorf("for a question: %s", got)
	}

	long := gated("long")
	run, log := startWatched(t, client, long)
	awaitText(t, client, log, "before the gate")
	time.Sleep(5 * time.Second) // longer than it may be idle
	if got := switches.obeyed(); got != "sleep sleepy, wake sleepy" {
		t.Errorf("while it builds: %s", got)
	}
	openGate(t, sleepy, "long")
	run.mustSucceed(t)
	text := client.MustShell(t, "cat "+log)
	wantText(t, "the client's log", text, "waking builder 'sleepy' (up to 60 s)", "builder 'sleepy' is awake after ", "on 'sleepy'")
	asleep("after the build")

	proxy.Terminate(t.Context())
	if err := proxy.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new proxy takes it for asleep", patience, func() bool { return strings.Contains(status(t, proxy), "sleepy  asleep") })
	build(t, client, testbed.Derivation{Name: "again"})
	if got := switches.obeyed(); !strings.HasSuffix(got, "wake sleepy") && !strings.HasSuffix(got, "wake sleepy, sleep sleepy") {
		t.Errorf("in the end: %s", got)
	}
}

// status is what the proxy tells its admin.
func status(t *testing.T, p *world.Proxy) string {
	t.Helper()
	return p.Host().MustShell(t, world.Binary+" status --config "+world.ConfigFile)
}
