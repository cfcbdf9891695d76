package e2e

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A household is three clients, one with each version of Nix, and one builder with one
// slot.
type household struct {
	bed             *testbed.Bed
	proxy           *world.Proxy
	builder         *testbed.Host
	anna, ben, carl *testbed.Host
	key             testbed.Key
	relayToProxy    *testbed.Relay // on anna's host, port 22
}

func startHousehold(t *testing.T) *household {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	hosts := bed.MustStart(t,
		testbed.HostSpec{Name: "builder", Kind: testbed.Builder, MaxJobs: 1},
		testbed.HostSpec{Name: "anna", Kind: testbed.Client, Keys: []testbed.Key{key}},
		testbed.HostSpec{Name: "ben", Kind: testbed.Client, Nix: testbed.Nix226, Keys: []testbed.Key{key}},
		testbed.HostSpec{Name: "carl", Kind: testbed.Client, Nix: testbed.Nix28, Keys: []testbed.Key{key}})
	c := &household{bed: bed, builder: hosts[0], anna: hosts[1], ben: hosts[2], carl: hosts[3], key: key}
	c.proxy = startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: c.builder, MaxJobs: 1}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Extra:      "scheduling: {linger: 0s}\n",
	})
	for _, client := range c.clients() {
		setMachines(t, client, c.proxy.Machine(key))
	}
	relay, err := c.anna.Relay(testbed.RelaySpec{Port: 22, Target: "proxy:22"})
	if err != nil {
		t.Fatal(err)
	}
	c.relayToProxy = relay
	return c
}

func (c *household) clients() []*testbed.Host { return []*testbed.Host{c.anna, c.ben, c.carl} }

// gated is a build that leaves a mark whenever it runs, says so, and ends when
// openGate is called.
func gated(name string) testbed.Derivation {
	return testbed.Derivation{Name: name, Script: fmt.Sprintf(
		"mktemp /tmp/ran.%[1]s.XXXXXX\necho before the gate >&2\n"+
			"while test ! -e /tmp/gate.%[1]s; do sleep 0.05; done\necho behind the gate >&2", name)}
}

func openGate(t *testing.T, builder *testbed.Host, name string) {
	t.Helper()
	builder.MustShell(t, "touch /tmp/gate."+name)
}

// timesRun is how often a gated build ran on a builder.
func timesRun(t *testing.T, builder *testbed.Host, name string) int {
	t.Helper()
	return len(strings.Fields(builder.MustShell(t, "ls -d /tmp/ran."+name+".* 2>/dev/null || true")))
}

// startWatched begins to build an attribute and returns a file on the client
// that shows what the client says meanwhile.
func startWatched(t *testing.T, client *testbed.Host, derivation testbed.Derivation) (r *running, file string) {
	t.Helper()
	file = fmt.Sprintf("/root/e2e/%d.log", expressions.Add(1))
	script := buildScript(writeExpression(t, client, derivation), []string{derivation.Name})
	return startScript(t, client, script+" 2>"+file), file
}

// awaitText waits until a file on a host has a text.
func awaitText(t *testing.T, host *testbed.Host, file, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s on %s has %q", file, host.Name(), text), patience, func() bool {
		content, err := host.ReadFile(t.Context(), file)
		return err == nil && strings.Contains(string(content), text)
	})
}

func TestBuildsBelongToThoseWhoWait(t *testing.T) {
	c := startHousehold(t)
	t.Run("three clients share one build", c.testShared)
	t.Run("a build goes on while somebody waits", c.testOneLeaves)
	t.Run("killed client", c.testKilled)
	t.Run("reset connection", c.testReset)
	t.Run("closed channel", c.testClosedChannel)
	t.Run("a laptop that took a nap", c.testAsleep)
}

// startShared has all three clients ask for one build, one after the other.
func (c *household) startShared(t *testing.T, d testbed.Derivation) (runs []*running, logs []string) {
	t.Helper()
	for _, client := range c.clients() {
		run, log := startWatched(t, client, d)
		awaitText(t, client, log, "before the gate") // for who comes later, too
		runs, logs = append(runs, run), append(logs, log)
	}
	return runs, logs
}

// wantShared lets a build end, and wants that the clients have its log and its
// result, and that it ran once.
func (c *household) wantShared(t *testing.T, d testbed.Derivation, clients []*testbed.Host, runs []*running, logs []string) {
	t.Helper()
	openGate(t, c.builder, d.Name)
	var out string
	for i, run := range runs {
		paths, _ := run.mustSucceed(t)
		if out = cmp.Or(out, paths[0]); paths[0] != out {
			t.Errorf("%s got %s, another client %s", clients[i].Name(), paths, out)
		}
		clients[i].MustShell(t, "nix-store --verify-path "+out)
		awaitText(t, clients[i], logs[i], "behind the gate")
	}
	if n := timesRun(t, c.builder, d.Name); n != 1 {
		t.Errorf("it was built %d times", n)
	}
}

// Guards against building twice what is being built, and against later clients that
// wait in the dark.
func (c *household) testShared(t *testing.T) {
	shared := gated("shared")
	runs, logs := c.startShared(t, shared)
	c.wantShared(t, shared, c.clients(), runs, logs)
}

// Guards against a build that ends with the client who asked first.
func (c *household) testOneLeaves(t *testing.T) {
	left := gated("left")
	runs, logs := c.startShared(t, left)
	mark := c.proxy.Mark()
	runs[0].kill()
	waitLine(t, c.proxy, mark, world.Message("ssh connection ended", "addr", c.anna.Addr().String()))
	c.wantShared(t, left, c.clients()[1:], runs[1:], logs[1:])
}

// wantBuildToEnd is the common end of those whose only client has gone: the
// build ends on the builder and its slot is free.
func (c *household) wantBuildToEnd(t *testing.T, how string) {
	t.Helper()
	// Two seconds are promised for closing the builder's channel; its daemon then
	// takes its time to kill the build.
	const within = 5 * time.Second
	since := time.Now()
	awaitBuilds(t, c.builder, 0, within)
	t.Logf("no build runs %v after: %s", time.Since(since), how)
	build(t, c.ben, testbed.Derivation{Name: "after-" + strings.ReplaceAll(how, " ", "-")})
}

// Guards against builds that run on for nobody and keep the slot.
func (c *household) testKilled(t *testing.T) {
	run, log := startWatched(t, c.anna, gated("killed"))
	awaitText(t, c.anna, log, "before the gate")
	run.kill()
	c.wantBuildToEnd(t, "client killed")
}

func (c *household) testReset(t *testing.T) {
	defer c.throughRelay(t)()
	run, log := startWatched(t, c.anna, gated("reset"))
	awaitText(t, c.anna, log, "before the gate")
	c.relayToProxy.Reset()
	c.wantBuildToEnd(t, "connection reset")
	run.mustFail(t)
}

// throughRelay has anna reach the proxy over the relay, until undo is called.
func (c *household) throughRelay(t *testing.T) (undo func()) {
	t.Helper()
	machine := c.proxy.Machine(c.key)
	machine.Store, machine.HostKey = "ssh-ng://anna", hostKeyField(c.proxy)
	setMachines(t, c.anna, machine)
	return func() { setMachines(t, c.anna, c.proxy.Machine(c.key)) }
}

// A nap that is shorter than the keep-alive's time costs nothing, not even the
// connection.
func (c *household) testAsleep(t *testing.T) {
	d := gated("asleep")
	run, log := startWatched(t, c.anna, d)
	awaitText(t, c.anna, log, "before the gate")
	if err := c.anna.Cut(); err != nil {
		t.Fatal(err)
	}
	openGate(t, c.builder, d.Name)
	awaitBuilds(t, c.builder, 0, patience)
	if err := c.anna.Restore(); err != nil {
		t.Fatal(err)
	}
	c.wantShared(t, d, []*testbed.Host{c.anna}, []*running{run}, []string{log})
}

// With a shared ControlMaster a client that goes leaves its connection behind,
// and only the channel is closed.
func (c *household) testClosedChannel(t *testing.T) {
	master := startScript(t, c.anna, "exec ssh -M -N -S /root/master -i "+c.key.File()+" proxy")
	eventually(t, "the master is there", patience, func() bool {
		res, err := c.anna.Shell(t.Context(), "ssh -S /root/master -O check proxy")
		return err == nil && res.Status == 0
	})
	mark := c.proxy.Mark()
	channel := gated("channel")
	script := buildScript(writeExpression(t, c.anna, channel), []string{channel.Name})
	run := startScript(t, c.anna, "export NIX_SSHOPTS='-S /root/master'; "+script)
	awaitBuilds(t, c.builder, 1, patience)
	run.kill()
	c.wantBuildToEnd(t, "channel closed")
	for _, l := range c.proxy.LinesSince(mark) {
		if l.Text("addr") == c.anna.Addr().String() {
			t.Errorf("the build did not use the master's connection: %s", l.Raw)
		}
	}
	master.kill()
}
