package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A client that waits for a builder says so, with and without a progress bar, whatever
// its version. Guards against builds that seem to hang.
func TestWaitingIsSeenByEveryClient(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	specs := []testbed.HostSpec{{Name: "b1", Kind: testbed.Builder}}
	for i, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: fmt.Sprintf("c%d", i+1), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{key}})
	}
	hosts := bed.MustStart(t, specs...)
	builder, clients := hosts[0], hosts[1:]
	proxy := startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: builder}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
	})
	machine := proxy.Machine(key)
	machine.MaxJobs = 8
	for _, c := range clients {
		setMachines(t, c, machine)
	}
	for i, client := range clients {
		t.Run(client.Nix(), func(t *testing.T) { testWaitingIsSeen(t, builder, clients[0], client, i) })
	}
}

// testWaitingIsSeen has one client hold the builder, and another wait for it in three
// ways.
func testWaitingIsSeen(t *testing.T, builder, first, client *testbed.Host, i int) {
	holder := gated(fmt.Sprintf("holder%d", i))
	run, log := startWatched(t, first, holder)
	awaitText(t, first, log, "before the gate")
	command := func(name string) string {
		d := testbed.Derivation{Name: fmt.Sprintf("%s%d", name, i)}
		return "nix --extra-experimental-features nix-command build --no-link -f " + writeExpression(t, client, d) + " " + d.Name
	}
	var plain []*running
	for name, option := range map[string]string{"plain": "", "verbose": " -v"} {
		out := fmt.Sprintf("/root/e2e/waiting.%s%d", name, i)
		plain = append(plain, startScript(t, client, command(name)+option+" 2>"+out))
		awaitText(t, client, out, "waiting: ")
		if text := client.MustShell(t, "cat "+out); strings.Contains(text, "waiting for a machine to build") {
			t.Errorf("%s: it is said twice:\n%s", name, text)
		}
	}
	bar := startOnTerminal(t, client, command("bar"))
	eventually(t, "the progress bar shows that the build waits", patience, func() bool {
		return strings.Contains(bar.String(), "waiting for a machine to build '")
	})
	openGate(t, builder, holder.Name)
	run.mustSucceed(t)
	for _, r := range plain {
		if res := r.wait(t); res.Status != 0 {
			t.Errorf("status %d", res.Status)
		}
	}
	if err := <-bar.ended; err != nil {
		t.Errorf("with a progress bar: %v", err)
	}
	text := strings.ReplaceAll(bar.String(), "\x1b", "^[")
	t.Logf("the terminal got %d bytes, the last: %q", len(text), text[max(0, len(text)-300):])
}
