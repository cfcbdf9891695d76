package e2e

import (
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A client that is lost finds its build again, with its log from the first line,
// when it comes back in time. Guards against a laptop that changes its network and
// has to build all over again.
func TestALostClientsBuildIsThereWhenItComesBack(t *testing.T) {
	c := startCouple(t)
	t.Run("connection reset", c.testResetAndBack)
	t.Run("link down", c.testCutAndBack)
}

func (c *couple) testResetAndBack(t *testing.T) {
	machine := c.proxy.Machine(c.key)
	machine.Store, machine.HostKey = "ssh-ng://anna", hostKeyField(c.proxy)
	setMachines(t, c.anna, machine)
	defer setMachines(t, c.anna, c.proxy.Machine(c.key))
	c.loseAndFind(t, "reset", func() {
		time.Sleep(2 * time.Second) // a client that is killed resets its connection right after an acknowledgement
		c.relayToProxy.Reset()
	}, func() {})
}

func (c *couple) testCutAndBack(t *testing.T) {
	c.loseAndFind(t, "cut", func() {
		if err := c.anna.Cut(); err != nil {
			t.Fatal(err)
		}
	}, func() {
		if err := c.anna.Restore(); err != nil {
			t.Fatal(err)
		}
	})
}

func (c *couple) loseAndFind(t *testing.T, name string, lose, restore func()) {
	found := gated(name)
	mark := c.proxy.Mark()
	first, log := startWatched(t, c.anna, found)
	awaitText(t, c.anna, log, "before the gate")
	lose()
	waitLine(t, c.proxy, mark, world.Message("client was lost; its build goes on"))
	first.kill()
	restore()
	again, log := startWatched(t, c.anna, found)
	awaitText(t, c.anna, log, "before the gate")
	awaitText(t, c.anna, log, "whose build went on when its client was lost")
	openGate(t, c.builder, name)
	again.mustSucceed(t)
	if n := timesRun(t, c.builder, name); n != 1 {
		t.Errorf("it was built %d times", n)
	}
}

// A build of a lost client that nobody asks for again ends in its time, and its slot
// is free. Guards against builds that run on for nobody.
func TestALostClientsBuildEndsInTime(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder},
		testbed.HostSpec{Name: "anna", Kind: testbed.Client, Keys: []testbed.Key{key}})
	builder, anna := hosts[0], hosts[1]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builder}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Extra:      "scheduling: {linger: 5s}\n",
	})
	relay, err := anna.Relay(testbed.RelaySpec{Port: 22, Target: "proxy:22"})
	if err != nil {
		t.Fatal(err)
	}
	machine := proxy.Machine(key)
	machine.Store, machine.HostKey = "ssh-ng://anna", hostKeyField(proxy)
	setMachines(t, anna, machine)
	mark := proxy.Mark()
	run, log := startWatched(t, anna, gated("left"))
	awaitText(t, anna, log, "before the gate")
	time.Sleep(2 * time.Second) // see above
	relay.Reset()
	waitLine(t, proxy, mark, world.Message("client was lost; its build goes on"))
	run.mustFail(t)
	if n := runningBuilds(t, builder); n != 1 {
		t.Errorf("%d builds run at once after the loss", n)
	}
	awaitBuilds(t, builder, 0, patience)
}
