package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A workshop has two builders, of which the second is the faster: whoever does not
// look where an output is takes that one.
type workshop struct {
	proxy   *world.Proxy
	first   *testbed.Host
	second  *testbed.Host
	clients map[string]*testbed.Host // by version of Nix
	spec    world.ProxySpec          // with both builders
	// alice has the defaults of a full key, carl may repair, dora may not even check.
	alice, carl, dora testbed.Key
}

func startWorkshop(t *testing.T) *workshop {
	t.Helper()
	bed := testbed.ForTest(t)
	w := &workshop{clients: map[string]*testbed.Host{}, alice: bed.UserKey("alice"), carl: bed.UserKey("carl"), dora: bed.UserKey("dora")}
	// A Nix that knows content-addressed derivations remembers by which build a path
	// came, looks at that instead of the path's bytes, and repairs nothing.
	repairing := []string{"experimental-features = nix-command flakes"}
	specs := []testbed.HostSpec{
		{Name: "first", Kind: testbed.Builder, MaxJobs: 2, NixConf: repairing},
		{Name: "second", Kind: testbed.Builder, MaxJobs: 2, NixConf: repairing, Features: []string{"second"}},
	}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{w.alice, w.carl, w.dora}})
	}
	hosts := bed.MustStart(t, specs...)
	w.first, w.second = hosts[0], hosts[1]
	for i, v := range versions {
		w.clients[v] = hosts[2+i]
	}
	w.spec = world.ProxySpec{
		Builders: []world.Builder{
			{Host: w.first, MaxJobs: 2},
			{Host: w.second, MaxJobs: 2, SpeedFactor: 10, Features: []string{"second"}},
		},
		Principals: []world.Principal{
			{Name: "alice", Keys: []testbed.Key{w.alice}},
			{Name: "carl", Keys: []testbed.Key{w.carl}, Extra: []string{"repair_builds: allow"}},
			{Name: "dora", Keys: []testbed.Key{w.dora}, Extra: []string{"check_builds: refuse"}},
		},
	}
	w.proxy = startProxy(t, bed, w.spec)
	return w
}

// alone leaves one builder in the policy for as long as do runs.
func (w *workshop) alone(t *testing.T, builder *testbed.Host, do func()) {
	t.Helper()
	spec := w.spec
	spec.Builders = nil
	for _, b := range w.spec.Builders {
		if b.Host == builder {
			spec.Builders = append(spec.Builders, b)
		}
	}
	w.reload(t, spec)
	do()
	w.reload(t, w.spec)
}

func (w *workshop) reload(t *testing.T, spec world.ProxySpec) {
	t.Helper()
	if err := w.proxy.Reload(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}

// A check builds again what is there, so it can only run where the output is.
// Guards against checks that are sent where the output is not, or that are answered
// from the cache, and against repairs by those who may not.
func TestS39CheckRunsWhereTheOutputIs(t *testing.T) {
	w := startWorkshop(t)
	for _, v := range versions {
		t.Run("on one builder, by "+v, func(t *testing.T) { w.testOnOne(t, v) })
		t.Run("on both builders, by "+v, func(t *testing.T) { w.testOnBoth(t, v) })
		t.Run("not the same twice, by "+v, func(t *testing.T) { w.testDiffers(t, v) })
		t.Run("on no builder, by "+v, func(t *testing.T) { w.testOnNone(t, v) })
	}
	t.Run("by policy", w.testByPolicy)
	t.Run("repair", w.testRepair)
}

// markedBuild leaves a mark on the builder each time that it is built.
func markedBuild(name string) testbed.Derivation {
	return testbed.Derivation{Name: name, Script: "mktemp /tmp/ran." + name + ".XXXXXX"}
}

// ran is how often a marked build ran on each builder.
func (w *workshop) ran(t *testing.T, name string) (first, second int) {
	t.Helper()
	return timesRun(t, w.first, name), timesRun(t, w.second, name)
}

// at is nix-build on the proxy's store.
func at(key testbed.Key, file, name, options string) string {
	return fmt.Sprintf("nix-build --no-out-link --store %s %s -A %s %s", storeURI("ssh-ng", key), file, name, options)
}

func (w *workshop) testOnOne(t *testing.T, version string) {
	client, d := w.clients[version], markedBuild("one-"+word(version))
	file := writeExpression(t, client, d)
	w.alone(t, w.first, func() { client.MustShell(t, at(w.alice, file, d.Name, "")) })
	client.MustShell(t, at(w.alice, file, d.Name, "--check"))
	if first, second := w.ran(t, d.Name); first != 2 || second != 0 {
		t.Errorf("after a build and a check it was built %d times where it is and %d times where it is not", first, second)
	}
	client.MustShell(t, fmt.Sprintf("nix build --no-link --store %s -f %s %s --rebuild", storeURI("ssh-ng", w.alice), file, d.Name))
	if first, second := w.ran(t, d.Name); first != 3 || second != 0 {
		t.Errorf("after --rebuild it was built %d times where it is and %d times where it is not", first, second)
	}
	// An ordinary build needs none.
	client.MustShell(t, at(w.alice, file, d.Name, ""))
	if first, second := w.ran(t, d.Name); first != 3 || second != 0 {
		t.Errorf("what is there was built again: %d and %d times", first, second)
	}
}

func (w *workshop) testOnBoth(t *testing.T, version string) {
	client, d := w.clients[version], markedBuild("both-"+word(version))
	user := testbed.Derivation{Name: "user-of-" + d.Name, Inputs: []string{d.Name}, KeepInputs: true, RequiredFeatures: []string{"second"}}
	file := writeExpression(t, client, d, user)
	var out string
	w.alone(t, w.first, func() { out = strings.TrimSpace(client.MustShell(t, at(w.alice, file, d.Name, ""))) })
	client.MustShell(t, at(w.alice, file, user.Name, ""))
	w.second.MustShell(t, "test -e "+out)
	client.MustShell(t, at(w.alice, file, d.Name, "--check"))
	if first, second := w.ran(t, d.Name); first+second != 2 || first == 0 {
		t.Errorf("after a build and a check it was built %d and %d times", first, second)
	}
}

// What only the proxy has is brought to a builder first.
func (w *workshop) testOnNone(t *testing.T, version string) {
	client, d := w.clients[version], markedBuild("none-"+word(version))
	file := writeExpression(t, client, d)
	var out string
	w.alone(t, w.first, func() { out = strings.TrimSpace(client.MustShell(t, at(w.alice, file, d.Name, ""))) })
	// The connection of the build holds it; without its builder in the policy that ends.
	w.alone(t, w.second, func() {
		eventually(t, "first forgets "+out, patience, func() bool {
			res, err := w.first.Shell(t.Context(), "nix-store --delete "+out)
			return err == nil && res.Status == 0
		})
	})
	client.MustShell(t, at(w.alice, file, d.Name, "--check"))
	if first, second := w.ran(t, d.Name); first+second != 2 {
		t.Errorf("after a build and a check it was built %d and %d times", first, second)
	}
}

// The client reads that the results differ, and the first one stays.
func (w *workshop) testDiffers(t *testing.T, version string) {
	client, d := w.clients[version], markedBuild("differs-"+word(version))
	d.OutputSize, d.Random = 32, true
	file := writeExpression(t, client, d)
	out := strings.TrimSpace(client.MustShell(t, at(w.alice, file, d.Name, "")))
	hash := client.MustShell(t, "nix-store --query --hash --store "+storeURI("ssh-ng", w.alice)+" "+out)
	wantText(t, "the log of a check", wantFails(t, client, at(w.alice, file, d.Name, "--check")), "not be deterministic")
	if now := client.MustShell(t, "nix-store --query --hash --store "+storeURI("ssh-ng", w.alice)+" "+out); now != hash {
		t.Errorf("the output's hash was %s and is %s", hash, now)
	}
	if first, second := w.ran(t, d.Name); first != 2 && second != 2 {
		t.Errorf("a build and a check ran %d and %d times: not on one builder", first, second)
	}
}

func (w *workshop) testByPolicy(t *testing.T) {
	client, d := w.clients[testbed.Nix234], markedBuild("by-policy")
	file := writeExpression(t, client, d)
	client.MustShell(t, at(w.dora, file, d.Name, ""))
	firstBefore, secondBefore := w.ran(t, d.Name)
	wantText(t, "what dora reads", wantFails(t, client, at(w.dora, file, d.Name, "--check")), "check", "dora")
	wantText(t, "what alice reads", wantFails(t, client, at(w.alice, file, d.Name, "--repair")), "repair", "alice")
	if first, second := w.ran(t, d.Name); first != firstBefore || second != secondBefore {
		t.Errorf("what was refused was built: %d and %d times", first, second)
	}
}

// Repair heals a path that was spoiled on the builder that holds it.
func (w *workshop) testRepair(t *testing.T) {
	client, d := w.clients[testbed.Nix234], markedBuild("spoiled")
	file := writeExpression(t, client, d)
	var out string
	w.alone(t, w.first, func() { out = strings.TrimSpace(client.MustShell(t, at(w.carl, file, d.Name, ""))) })
	w.first.MustShell(t, "chmod u+w "+out+" && echo spoiled >>"+out)
	wantFails(t, w.first, "nix-store --verify-path "+out)
	client.MustShell(t, at(w.carl, file, d.Name, "--repair"))
	w.first.MustShell(t, "nix-store --verify-path "+out)
	if first, second := w.ran(t, d.Name); first != 2 || second != 0 {
		t.Errorf("after a build and a repair it was built %d times where it is and %d times where it is not", first, second)
	}
}
