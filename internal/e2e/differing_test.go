package e2e

import (
	"fmt"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// Three builders and the client have made one path by themselves, each with other
// bytes, as what is not reproducible comes out. With builder_content: accept a build
// that has it as its input runs on each of them, and the log says once what differs;
// with match that builder is not used, and the client reads why. Guards against the
// refusal of what is everyday, and against bytes that are used although the admin
// wants ours.
func TestBuildersWithOtherBytesOfAnInput(t *testing.T) {
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	names := []string{"one", "two", "three"}
	var specs []testbed.HostSpec
	for _, name := range names {
		specs = append(specs, testbed.HostSpec{Name: name, Kind: testbed.Builder, MaxJobs: 1, Features: []string{name}})
	}
	hosts := bed.MustStart(t, append(specs, testbed.HostSpec{Name: "client", Kind: testbed.Client, Keys: []testbed.Key{key}})...)
	client := hosts[3]
	input := testbed.Derivation{Name: "input", OutputSize: 5000, Random: true}
	bytes := map[string]string{}
	var path string
	for _, host := range hosts {
		path = builtAlone(t, host, input)
		bytes[host.MustShell(t, "sha256sum "+path)] = host.Name()
	}
	if len(bytes) != len(hosts) {
		t.Fatalf("the bytes do not differ: %v", bytes)
	}
	proxySpec := func(extra ...string) world.ProxySpec {
		spec := world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}}}
		for i, name := range names {
			spec.Builders = append(spec.Builders, world.Builder{Host: hosts[i], MaxJobs: 1, Features: []string{name}, Extra: extra})
		}
		return spec
	}
	p := startProxy(t, bed, proxySpec())
	setMachines(t, client, p.Machine(key))
	user := func(round, builder string) (file, attribute string) {
		d := testbed.Derivation{Name: round + "-" + builder, RequiredFeatures: []string{builder}, Inputs: []string{"input"}, KeepInputs: true}
		return writeExpression(t, client, input, d), d.Name
	}

	for _, round := range []string{"first", "second"} {
		for _, name := range names {
			file, attribute := user(round, name)
			startBuild(t, client, file, []string{attribute}).mustSucceed(t)
			if got := strings.Join(builtOn(p, attribute), " "); got != name {
				t.Errorf("%s was built on %q", attribute, got)
			}
		}
	}
	for _, name := range names {
		n := 0
		for _, l := range p.LinesSince(0) {
			if strings.Contains(l.Msg, "other content") && l.Text("builder") == name && l.Text("path") == path {
				n++
			}
		}
		if n != 1 {
			t.Errorf("the log says %d times that %s has other content", n, name)
		}
	}

	if err := p.Reload(t.Context(), proxySpec("builder_content: match")); err != nil {
		t.Fatal(err)
	}
	file, attribute := user("third", "two")
	log := startBuild(t, client, file, []string{attribute}).mustFail(t)
	wantText(t, "what the client reads", log, "two", "holds "+path+" with other content")
	if got := builtOn(p, attribute); len(got) > 0 {
		t.Errorf("%s was built on %v", attribute, got)
	}
	// Once the builder is rid of its own, it is given ours.
	hosts[1].MustShell(t, fmt.Sprintf("nix-store --delete $(nix-store --query --referrers-closure %s)", path))
	startBuild(t, client, file, []string{attribute}).mustSucceed(t)
	client.MustShell(t, "sha256sum <"+path+" >/root/ours")
	hosts[1].MustShell(t, same("sha256sum <"+path, "echo '"+strings.TrimSpace(client.MustShell(t, "cat /root/ours"))+"'"))
}
