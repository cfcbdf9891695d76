package e2e

import (
	"fmt"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A traveller is a client that reaches the proxy over a relay on its own host, and
// the one builder behind.
type traveller struct {
	proxy           *world.Proxy
	builder, client *testbed.Host
	relay           *testbed.Relay
}

func startTraveller(t *testing.T, linger string) *traveller {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder},
		testbed.HostSpec{Name: "anna", Kind: testbed.Client, Keys: []testbed.Key{key}})
	w := &traveller{builder: hosts[0], client: hosts[1]}
	w.proxy = startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: w.builder}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Extra:      "scheduling: {linger: " + linger + "}\n",
	})
	var err error
	if w.relay, err = w.client.Relay(testbed.RelaySpec{Port: 22, Target: "proxy:22"}); err != nil {
		t.Fatal(err)
	}
	machine := w.proxy.Machine(key)
	machine.Store, machine.HostKey = "ssh-ng://anna", hostKeyField(w.proxy)
	setMachines(t, w.client, machine)
	return w
}

// resetQuiet is longer than a connection must be without an acknowledgement to be
// lost by a reset: the kernel of a client that is killed sends one, too.
const resetQuiet = 7 * time.Second

// lose begins a build whose client is then lost, and returns what the client runs.
func (w *traveller) lose(t *testing.T, d testbed.Derivation, how func()) *running {
	t.Helper()
	mark := w.proxy.Mark()
	run, log := startWatched(t, w.client, d)
	awaitText(t, w.client, log, "before the gate")
	time.Sleep(resetQuiet)
	how()
	waitLine(t, w.proxy, mark, world.Message("client was lost; its build goes on"))
	return run
}

// A client that is lost finds its build, with its log from the first line on, when it
// comes back in time. Guards against a laptop that changes its network and has to build
// all over again.
func TestALostClientsBuildIsThereWhenItComesBack(t *testing.T) {
	t.Parallel() // it mostly waits
	w := startTraveller(t, "1m")
	t.Run("connection reset", func(t *testing.T) {
		d := gated("reset")
		w.lose(t, d, func() { w.relay.Reset() }).mustFail(t)
		w.find(t, d)
	})
	t.Run("link down", func(t *testing.T) {
		d := gated("cut")
		run := w.lose(t, d, func() { cable(t, w.client.Cut) })
		run.kill()
		cable(t, w.client.Restore)
		w.find(t, d)
	})
}

func cable(t *testing.T, set func() error) {
	t.Helper()
	if err := set(); err != nil {
		t.Fatal(err)
	}
}

func (w *traveller) find(t *testing.T, d testbed.Derivation) {
	t.Helper()
	run, log := startWatched(t, w.client, d)
	awaitText(t, w.client, log, "before the gate")
	awaitText(t, w.client, log, "whose build went on when its client was lost")
	openGate(t, w.builder, d.Name)
	run.mustSucceed(t)
	if n := timesRun(t, w.builder, d.Name); n != 1 {
		t.Errorf("it was built %d times", n)
	}
}

// The build of a lost client that nobody asks for again ends in its time. Guards
// against builds that run on for nobody and keep the slot.
func TestALostClientsBuildEndsInTime(t *testing.T) {
	t.Parallel() // it mostly waits
	w := startTraveller(t, "5s")
	w.lose(t, gated("left"), func() { w.relay.Reset() }).mustFail(t)
	if n := runningBuilds(t, w.builder); n != 1 {
		t.Errorf("%d builds run after the loss", n)
	}
	awaitBuilds(t, w.builder, 0, patience)
}

// Whoever interrupts Nix has left, however much the build prints: Nix kills its ssh with
// bytes unread, for which the kernel resets the connection. Guards against loud builds
// of people who gave up that linger.
func TestAnInterruptedClientIsNotLost(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	builder := bed.MustStart(t, testbed.HostSpec{Name: "builder", Kind: testbed.Builder})[0]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builder}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	for _, v := range versions {
		client := bed.MustStart(t, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{key}})[0]
		setMachines(t, client, proxy.Machine(key))
		for i, script := range []string{"sleep 300", loudScript, loudScript, loudScript} {
			d := testbed.Derivation{Name: fmt.Sprintf("given-up-%d-%s", i, word(v)), Script: script}
			mark := proxy.Mark()
			run, _ := startWatched(t, client, d)
			awaitBuilds(t, builder, 1, patience)
			client.MustShell(t, "pkill -INT nix-build")
			ended := waitLine(t, proxy, mark, world.Message("ssh connection ended", "addr", client.Addr().String()))
			awaitBuilds(t, builder, 0, 10*time.Second)
			if reason := ended.Text("reason"); reason != "" {
				t.Errorf("%s: a client that was interrupted is lost: %s", v, reason)
			}
			run.mustFail(t)
		}
	}
}

const loudScript = "while :; do echo this line is one of very many >&2; done"
