package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

var versions = []string{testbed.Nix28, testbed.Nix226, testbed.Nix234}

// word makes a version fit for host names, attributes and features.
func word(version string) string { return "v" + strings.ReplaceAll(version, ".", "-") }

// A matrix is a client and a builder of every version around one proxy. Each
// builder has a feature of its own, by which builds are aimed at it.
type matrix struct {
	proxy   *world.Proxy
	clients map[string]*testbed.Host // by version, as builders
	builder map[string]*testbed.Host
	key     testbed.Key
}

func startMatrix(t *testing.T) *matrix {
	t.Helper()
	bed := testbed.ForTest(t)
	m := &matrix{clients: map[string]*testbed.Host{}, builder: map[string]*testbed.Host{}, key: bed.UserKey("alice")}
	var specs []testbed.HostSpec
	for _, v := range versions {
		specs = append(specs,
			testbed.HostSpec{Name: "builder-" + word(v), Kind: testbed.Builder, Nix: v, MaxJobs: 4, Features: []string{word(v)}},
			testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{m.key}})
	}
	hosts := bed.MustStart(t, specs...)
	spec := world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{m.key}}}}
	for i, v := range versions {
		m.builder[v], m.clients[v] = hosts[2*i], hosts[2*i+1]
		spec.Builders = append(spec.Builders, world.Builder{Host: m.builder[v], Features: []string{word(v)}, MaxJobs: 4})
	}
	m.proxy = startProxy(t, bed, spec)
	for _, client := range m.clients {
		setMachines(t, client, m.proxy.Machine(m.key))
		writeQuietSSH(t, client)
	}
	return m
}

// A pair is a client and the builder that its builds are aimed at.
type pair struct {
	*matrix
	client  *testbed.Host
	builder *testbed.Host
	feature string
	// name is different for each pair, and so are all its derivations.
	name string
	// logLines is how many lines the noisy build writes.
	logLines int
}

// Each version of Nix as client has every kind of build done on each version
// as builder, through one line in its machines file. Guards against messages
// that only some versions understand.
func TestEveryClientBuildsOnEveryBuilder(t *testing.T) { testMatrix(t, fewLogLines) }

// The same with a long log from every pair.
func TestSoakMatrixWithLongLogs(t *testing.T) {
	onlyInSoak(t)
	testMatrix(t, func(string, string) int { return 100_000 })
}

// fewLogLines gives each client version one long log: that of a builder of the
// next version.
func fewLogLines(client, builder string) int {
	for i, v := range versions {
		if v == client && versions[(i+1)%len(versions)] == builder {
			return 100_000
		}
	}
	return 1000
}

func testMatrix(t *testing.T, logLines func(client, builder string) int) {
	m := startMatrix(t)
	t.Run("pairs", func(t *testing.T) {
		for _, c := range versions {
			for _, b := range versions {
				t.Run(c+" on "+b, func(t *testing.T) {
					t.Parallel()
					p := &pair{matrix: m, client: m.clients[c], builder: m.builder[b], feature: word(b),
						name: "c" + word(c) + "-b" + word(b), logLines: logLines(c, b)}
					p.run(t)
				})
			}
		}
	})
	for _, v := range versions {
		t.Run("store of "+v, func(t *testing.T) { m.testStoreCommands(t, v) })
		t.Run("second client "+v, func(t *testing.T) { m.testSecondClient(t, v) })
	}
}

// run does not use subtests: they would wait for those of other pairs.
func (p *pair) run(t *testing.T) {
	p.testChain(t)
	p.testFixedOutput(t)
	p.testFailure(t)
	p.testLongLog(t)
}

func (p *pair) derivation(kind string) testbed.Derivation {
	return testbed.Derivation{Name: kind + "-" + p.name, RequiredFeatures: []string{p.feature}}
}

// chain is a build with a source file and an input that is built too, and two
// outputs of which one refers to the other.
func (p *pair) chain() []testbed.Derivation {
	dep := p.derivation("dep")
	dep.Sources = []string{"/root/source-" + p.name}
	dep.KeepInputs = true
	top := p.derivation("top")
	top.Inputs = []string{dep.Name}
	top.Outputs = []string{"out", "foo"}
	top.KeepInputs = true
	return []testbed.Derivation{dep, top}
}

func (p *pair) testChain(t *testing.T) {
	p.writeSource(t, p.client)
	file := writeExpression(t, p.client, p.chain()...)
	paths, log := startBuild(t, p.client, file, []string{"top-" + p.name + ".all"}).mustSucceed(t)
	if len(paths) != 2 {
		t.Fatalf("nix-build printed %q, want two outputs", paths)
	}
	wantText(t, "the client's log", log, p.builder.Name())
	p.wantBuiltHere(t, "dep-"+p.name)
	p.wantBuiltHere(t, "top-"+p.name)

	out, foo := paths[0], paths[1]
	all := p.client.MustShell(t, fmt.Sprintf("cat %s/name %[2]s/file1 $(cat %[2]s/inputs)/file1 $(cat $(cat %[2]s/inputs)/inputs)", foo, out))
	wantText(t, "what the outputs hold", all, "top-"+p.name, "dep-"+p.name, "source of "+p.name)
	if got := p.client.MustShell(t, "cat "+out+"/next"); strings.TrimSpace(got) != foo {
		t.Errorf("output out names %q, want %s", got, foo)
	}
	wantText(t, "references of output out", p.client.MustShell(t, "nix-store --query --references "+out), foo)
	p.client.MustShell(t, "nix-store --verify-path $(nix-store --query --requisites "+strings.Join(paths, " ")+")")
}

func (p *pair) writeSource(t *testing.T, client *testbed.Host) {
	t.Helper()
	if err := client.WriteFile(t.Context(), "/root/source-"+p.name, []byte("source of "+p.name+"\n")); err != nil {
		t.Fatal(err)
	}
}

func (p *pair) wantBuiltHere(t *testing.T, name string) {
	t.Helper()
	if got := builtOn(p.proxy, name); len(got) != 1 || got[0] != p.builder.Name() {
		t.Errorf("%s was built on %q, want %s once", name, got, p.builder.Name())
	}
}

func (p *pair) testFixedOutput(t *testing.T) {
	fixed := p.derivation("fixed")
	fixed.Fixed = "exactly this, " + p.name
	paths, _ := build(t, p.client, fixed)
	if got := p.client.MustShell(t, "cat "+paths[0]); got != fixed.Fixed {
		t.Errorf("the fixed output holds %q", got)
	}
	p.wantBuiltHere(t, fixed.Name)
}

// The client reads what the build said, how it ended, and where.
func (p *pair) testFailure(t *testing.T) {
	failing := p.derivation("failing")
	failing.LogLines = 3
	failing.Script = "echo my last words >&2"
	failing.ExitStatus = 5
	file := writeExpression(t, p.client, failing)
	log := startBuild(t, p.client, file, []string{failing.Name}).mustFail(t)
	wantText(t, "the log of a failed build", log, "log line 3", "my last words", "exit code 5", p.builder.Name())
	p.wantBuiltHere(t, failing.Name) // a failed build is a result: nobody tries again
}

// quietSSH is where clients have an ssh whose standard error is its own. OpenSSH
// makes that non-blocking, Nix has its build hook and ssh share it, and the hook
// drops log lines without a word while the pipe is full: with a proxy and
// without one, in versions 2.8 and 2.26 at least.
const quietSSH = "/usr/local/lib/quiet"

func writeQuietSSH(t *testing.T, client *testbed.Host) {
	t.Helper()
	script := "#!/bin/sh\nexec /usr/bin/ssh \"$@\" 2>>/root/ssh.log\n"
	if err := client.WriteFile(t.Context(), quietSSH+"/ssh", []byte(script)); err != nil {
		t.Fatal(err)
	}
	client.MustShell(t, "chmod 755 "+quietSSH+"/ssh")
}

func (p *pair) testLongLog(t *testing.T) {
	noisy := p.derivation("noisy")
	noisy.LogLines = p.logLines
	file := writeExpression(t, p.client, noisy)
	run := startScript(t, p.client, "export PATH="+quietSSH+":$PATH; "+buildScript(file, []string{noisy.Name}))
	paths, log := run.mustSucceed(t)
	t.Logf("%d log lines took %v", p.logLines, run.took)
	wantLogLines(t, "the client's log", log, p.logLines)
	// Nix keeps the log of a build beside the store, under the derivation.
	kept := p.client.MustShell(t, "nix-store --read-log $(nix-store --query --deriver "+paths[0]+")")
	wantLogLines(t, "the log that the client keeps", kept, p.logLines)
}

var logLine = regexp.MustCompile(`log line (\d+)\s*$`)

// wantLogLines wants each line once and in order.
func wantLogLines(t *testing.T, what, log string, lines int) {
	t.Helper()
	next := 1
	for line := range strings.Lines(log) {
		found := logLine.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		if found[1] != fmt.Sprint(next) {
			at := strings.Index(log, line)
			t.Errorf("%s has line %s where line %d should be: %q", what, found[1], next, log[max(0, at-300):min(len(log), at+100)])
			return
		}
		next++
	}
	if next-1 != lines {
		t.Errorf("%s has %d log lines, want %d", what, next-1, lines)
	}
}

// testStoreCommands asks the proxy as a store: no build, no builder.
func (m *matrix) testStoreCommands(t *testing.T, version string) {
	client := m.clients[version]
	store := "--store 'ssh-ng://proxy?ssh-key=" + m.key.File() + "'"
	// The newer word for the same is checked where there is one.
	words := []string{"ping"}
	if version != testbed.Nix28 {
		words = append(words, "info")
	}
	for _, w := range words {
		res, err := client.Shell(t.Context(), "nix store "+w+" "+store)
		if err != nil || res.Status != 0 {
			t.Fatalf("nix store %s: %v %+v", w, err, res)
		}
		if version != testbed.Nix28 { // 2.8 does not know the daemon's version
			wantText(t, "nix store "+w, res.Stdout+res.Stderr, "nixbastion")
		}
	}

	paths, _ := build(t, client, testbed.Derivation{Name: "asked-" + word(version), RequiredFeatures: []string{word(version)}, Outputs: []string{"out", "foo"}})
	out := paths[0]
	wantText(t, "nix path-info", client.MustShell(t, "nix path-info --size "+store+" "+out), out)
	foo := client.MustShell(t, "nix-store --query --references "+out)
	refs := client.MustShell(t, "nix-store --query --references "+store+" "+out)
	if foo == "" || refs != foo {
		t.Errorf("the proxy says references %q, the client %q", refs, foo)
	}
	hash := client.MustShell(t, "nix-store --query --hash "+out)
	if got := client.MustShell(t, "nix-store --query --hash "+store+" "+out); got != hash {
		t.Errorf("the proxy says hash %q, the client %q", got, hash)
	}
	unknown := strings.Replace(out, "/nix/store/", "/nix/store/00", 1)
	unknown = unknown[:len("/nix/store/")+32] + "-nobody-has-this"
	res, err := client.Shell(t.Context(), "nix path-info "+store+" "+unknown)
	if err != nil {
		t.Fatal(err)
	}
	if res.Status == 0 {
		t.Error("nix path-info finds a path that nobody has")
	}
	wantText(t, "nix path-info of an unknown path", res.Stderr, "is not valid")
}

// testSecondClient has a client ask for what the client of another version had
// built: it gets the same outputs and no builder does anything.
func (m *matrix) testSecondClient(t *testing.T, version string) {
	first := versions[(len(versions)-1+indexOf(version))%len(versions)]
	p := &pair{matrix: m, client: m.clients[version], builder: m.builder[version], feature: word(version),
		name: "c" + word(first) + "-b" + word(version)}
	p.writeSource(t, p.client)
	mark := m.proxy.Mark()
	file := writeExpression(t, p.client, p.chain()...)
	paths, _ := startBuild(t, p.client, file, []string{"top-" + p.name + ".all"}).mustSucceed(t)
	for _, l := range m.proxy.LinesSince(mark) {
		if l.Msg == "built" {
			t.Errorf("there was a build: %s", l.Raw)
		}
	}
	firstHas := m.clients[first].MustShell(t, "nix-store --query --hash "+strings.Join(paths, " "))
	if got := p.client.MustShell(t, "nix-store --query --hash "+strings.Join(paths, " ")); got != firstHas {
		t.Errorf("the second client has hashes %q, the first %q", got, firstHas)
	}
}

func indexOf(version string) int {
	for i, v := range versions {
		if v == version {
			return i
		}
	}
	panic("no such version: " + version)
}
