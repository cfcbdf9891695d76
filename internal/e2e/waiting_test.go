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
		t.Run(client.Nix(), func(t *testing.T) {
			holder := gated(fmt.Sprintf("holder%d", i))
			run, log := startWatched(t, clients[0], holder)
			awaitText(t, clients[0], log, "before the gate")
			// Under -qec the program has a terminal, and a progress bar where it has one.
			for name, command := range map[string]string{
				"plain": "%s 2>%s", "verbose": "%s -v 2>%s", "bar": "TERM=xterm script -qec '%s --log-format bar' /dev/null >%s 2>&1",
			} {
				waiting := testbed.Derivation{Name: fmt.Sprintf("%s%d", name, i)}
				file, out := writeExpression(t, client, waiting), "/root/e2e/waiting."+waiting.Name
				nix := "nix --extra-experimental-features nix-command build --no-link -f " + file + " " + waiting.Name
				r := startScript(t, client, fmt.Sprintf(command, nix, out))
				want := "waiting: "
				if name == "bar" {
					want = "waiting for a machine to build"
				}
				awaitText(t, client, out, want)
				t.Logf("%s:\n%s", name, tailOf(client.MustShell(t, "cat "+out)))
				defer func() {
					if res := r.wait(t); res.Status != 0 {
						t.Errorf("%s: status %d, %s", name, res.Status, client.MustShell(t, "cat "+out))
					}
				}()
			}
			openGate(t, builder, holder.Name)
			run.mustSucceed(t)
		})
	}
}

// tailOf are the last lines of a text with escape sequences made visible.
func tailOf(text string) string {
	text = strings.ReplaceAll(text, "\x1b", "^[")
	return text[max(0, len(text)-600):]
}
