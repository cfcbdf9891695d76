package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

var versions = []string{testbed.Nix28, testbed.Nix226, testbed.Nix234}

// word makes a version fit for host names, attributes and features.
func word(version string) string { return "v" + strings.ReplaceAll(version, ".", "-") }

// A combination is one way from a client to a builder: the versions of Nix at
// both ends, and the protocol before and behind the proxy.
type combination struct {
	client, builder string
	// down is the scheme of the client's store URI, up the proxy's protocol to the
	// builder.
	down, up string
}

var protocols = []string{"ssh-ng", "ssh"}

func allCombinations() []combination {
	var all []combination
	for _, client := range versions {
		for _, builder := range versions {
			for _, down := range protocols {
				for _, up := range protocols {
					all = append(all, combination{client, builder, down, up})
				}
			}
		}
	}
	return all
}

// pairs are the choices that meet in a combination, two by two.
func (c combination) pairs() []string {
	choices := []string{"client " + c.client, "builder " + c.builder, "down " + c.down, "up " + c.up}
	var met []string
	for i, a := range choices {
		for _, b := range choices[i+1:] {
			met = append(met, a+", "+b)
		}
	}
	return met
}

// covering chooses from all combinations until every two choices met, always the
// one in which most meet for the first time.
func covering(all []combination) []combination {
	met := map[string]bool{}
	fresh := func(c combination) (n int) {
		for _, pair := range c.pairs() {
			if !met[pair] {
				n++
			}
		}
		return n
	}
	var chosen []combination
	for {
		best := slices.MaxFunc(all, func(a, b combination) int { return fresh(a) - fresh(b) })
		if fresh(best) == 0 {
			return chosen
		}
		for _, pair := range best.pairs() {
			met[pair] = true
		}
		chosen = append(chosen, best)
	}
}

// Guards against a selection that leaves out what it was made to show.
func TestSelectionLetsEveryTwoChoicesMeet(t *testing.T) {
	met := map[string]bool{}
	for _, c := range covering(allCombinations()) {
		for _, pair := range c.pairs() {
			met[pair] = true
		}
	}
	const versions, protocols = 3, 2
	if want := versions*versions + 4*versions*protocols + protocols*protocols; len(met) != want {
		t.Errorf("%d of %d pairs are met", len(met), want)
	}
}

// feature is what aims a build at the combination: the client's line and the
// builder that have it are the combination's.
func (c combination) feature() string { return word(c.builder) + "." + c.down + "." + c.up }

// String is fit for the names of derivations.
func (c combination) String() string {
	return "c" + word(c.client) + "-b" + word(c.builder) + "-" + c.down + "-" + c.up
}

// A matrix is a client and a builder of every version. Two proxies stand between
// them, which differ in the protocol that they speak to the same builders.
type matrix struct {
	proxies map[string]*world.Proxy  // by protocol to the builders
	clients map[string]*testbed.Host // by version, as builders
	builder map[string]*testbed.Host
	key     testbed.Key
}

func startMatrix(t *testing.T) *matrix {
	t.Helper()
	bed := testbed.ForTest(t)
	m := &matrix{proxies: map[string]*world.Proxy{}, clients: map[string]*testbed.Host{}, builder: map[string]*testbed.Host{}, key: bed.UserKey("alice")}
	var specs []testbed.HostSpec
	for _, v := range versions {
		specs = append(specs,
			testbed.HostSpec{Name: "builder-" + word(v), Kind: testbed.Builder, Nix: v, MaxJobs: 4, Features: featuresOf(v, protocols, protocols)},
			testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{m.key}})
	}
	hosts := bed.MustStart(t, specs...)
	for i, v := range versions {
		m.builder[v], m.clients[v] = hosts[2*i], hosts[2*i+1]
	}
	for _, up := range protocols {
		m.proxies[up] = startProxy(t, bed, m.proxySpec(up))
	}
	for _, client := range m.clients {
		setMachines(t, client, m.machines()...)
		writeQuietSSH(t, client)
	}
	return m
}

// featuresOf are the features of the combinations with a builder of a version and
// any of the protocols.
func featuresOf(version string, down, up []string) []string {
	var all []string
	for _, d := range down {
		for _, u := range up {
			all = append(all, combination{builder: version, down: d, up: u}.feature())
		}
	}
	return all
}

func (m *matrix) proxySpec(up string) world.ProxySpec {
	spec := world.ProxySpec{Name: "proxy-" + up, Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{m.key}}}}
	for _, v := range versions {
		spec.Builders = append(spec.Builders, world.Builder{Host: m.builder[v], Features: featuresOf(v, protocols, []string{up}), MaxJobs: 4,
			Extra: []string{"protocol: " + up}})
	}
	return spec
}

// machines are a line for each proxy and each scheme, with the features of those
// combinations alone.
func (m *matrix) machines() []testbed.Machine {
	var lines []testbed.Machine
	for _, up := range protocols {
		for _, down := range protocols {
			line := m.proxies[up].Machine(m.key)
			line.Store, line.Features = down+"://proxy-"+up, nil
			for _, v := range versions {
				line.Features = append(line.Features, featuresOf(v, []string{down}, []string{up})...)
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// A pair is a client and the builder that its builds are aimed at.
type pair struct {
	combination
	proxy   *world.Proxy
	client  *testbed.Host
	builder *testbed.Host
	// name is different for each pair, and so are all its derivations.
	name string
	// logLines is how many lines the noisy build writes.
	logLines int
}

func (m *matrix) pair(c combination) *pair {
	return &pair{combination: c, proxy: m.proxies[c.up], client: m.clients[c.client], builder: m.builder[c.builder], name: c.String()}
}

// Each version of Nix as client has every kind of build done on each version as
// builder, through lines in its machines file. Each choice of version and of
// protocol meets each other one. Guards against messages that only some versions
// understand, and against what one of the protocols cannot tell.
func TestS01EveryClientBuildsOnEveryBuilder(t *testing.T) {
	testMatrix(t, covering(allCombinations()), fewLogLines)
}

// All combinations, with a log as long as the scheme allows in each.
func TestSoakMatrixWithLongLogs(t *testing.T) {
	onlyInSoak(t)
	testMatrix(t, allCombinations(), func(combination) int { return 100_000 })
}

// fewLogLines gives each client version one long log: that of a builder of the
// next version.
func fewLogLines(c combination) int {
	if versions[(indexOf(c.client)+1)%len(versions)] == c.builder {
		return 100_000
	}
	return 1000
}

func testMatrix(t *testing.T, selection []combination, logLines func(combination) int) {
	m := startMatrix(t)
	t.Run("pairs", func(t *testing.T) {
		for _, c := range selection {
			t.Run(fmt.Sprintf("%s on %s by %s and %s", c.client, c.builder, c.down, c.up), func(t *testing.T) {
				t.Parallel()
				p := m.pair(c)
				p.logLines = logLines(c)
				p.run(t)
			})
		}
	})
	for _, v := range versions {
		t.Run("store of "+v, func(t *testing.T) { m.testStoreCommands(t, v) })
	}
	for _, c := range selection {
		if c.client == c.builder {
			t.Run("second client "+c.client, func(t *testing.T) { m.testSecondClient(t, c) })
		}
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
	return testbed.Derivation{Name: kind + "-" + p.name, RequiredFeatures: []string{p.feature()}}
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

// Over ssh:// the log is ssh's standard error. Nix reads no more of that when its
// hook has ended, so a client that could not keep up lacks the end of a long log,
// with a proxy and without one.
const serveLogLines = 1000

func (p *pair) testLongLog(t *testing.T) {
	noisy := p.derivation("noisy")
	noisy.LogLines = p.logLines
	quiet := "export PATH=" + quietSSH + ":$PATH; "
	if p.down == "ssh" {
		noisy.LogLines, quiet = min(p.logLines, serveLogLines), ""
	}
	file := writeExpression(t, p.client, noisy)
	run := startScript(t, p.client, quiet+buildScript(file, []string{noisy.Name}))
	paths, log := run.mustSucceed(t)
	t.Logf("%d log lines took %v", noisy.LogLines, run.took)
	wantLogLines(t, "the client's log", log, noisy.LogLines)
	// Nix keeps the log of a build beside the store, under the derivation.
	kept := p.client.MustShell(t, "nix-store --read-log $(nix-store --query --deriver "+paths[0]+")")
	wantLogLines(t, "the log that the client keeps", kept, noisy.LogLines)
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
	store := "--store 'ssh-ng://proxy-ssh-ng?ssh-key=" + m.key.File() + "'"
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

	paths, _ := build(t, client, testbed.Derivation{Name: "asked-" + word(version),
		RequiredFeatures: featuresOf(version, []string{"ssh-ng"}, []string{"ssh-ng"}), Outputs: []string{"out", "foo"}})
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

// testSecondClient has a client of another version ask for what a combination had
// built: it gets the same outputs and no builder does anything.
func (m *matrix) testSecondClient(t *testing.T, c combination) {
	first := m.pair(c)
	second := *first
	second.client = m.clients[versions[(indexOf(c.client)+1)%len(versions)]]
	second.writeSource(t, second.client)
	mark := second.proxy.Mark()
	file := writeExpression(t, second.client, second.chain()...)
	paths, _ := startBuild(t, second.client, file, []string{"top-" + second.name + ".all"}).mustSucceed(t)
	for _, l := range second.proxy.LinesSince(mark) {
		if l.Msg == "built" {
			t.Errorf("there was a build: %s", l.Raw)
		}
	}
	firstHas := first.client.MustShell(t, "nix-store --query --hash "+strings.Join(paths, " "))
	if got := second.client.MustShell(t, "nix-store --query --hash "+strings.Join(paths, " ")); got != firstHas {
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
