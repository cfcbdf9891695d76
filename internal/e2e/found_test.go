package e2e

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A legacy is what was built on one of two builders before there was a proxy. Its
// clients may only read.
type legacy struct {
	proxy    *world.Proxy
	builders []*testbed.Host // the last one built all of it
	clients  map[string]*testbed.Host
	key      testbed.Key
	text     []testbed.Derivation
}

// relic is what one combination of client and scheme finds first: an output that
// refers to another, and a dependency that only its build needs.
func relic(version, scheme string) string { return "relic-" + word(version) + "-" + scheme }

func startLegacy(t *testing.T) *legacy {
	t.Helper()
	bed := testbed.ForTest(t)
	l := &legacy{key: bed.UserKey("reader"), clients: map[string]*testbed.Host{}}
	specs := []testbed.HostSpec{{Name: "empty", Kind: testbed.Builder}, {Name: "full", Kind: testbed.Builder, MaxJobs: 4}}
	for _, v := range versions {
		specs = append(specs, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{l.key}})
	}
	hosts := bed.MustStart(t, specs...)
	l.builders = hosts[:2]
	for i, v := range versions {
		l.clients[v] = hosts[2+i]
		writeQuietSSH(t, l.clients[v])
	}
	var attributes []string
	for _, v := range versions {
		for _, scheme := range protocols {
			name := relic(v, scheme)
			l.text = append(l.text, testbed.Derivation{Name: "tool-" + name},
				testbed.Derivation{Name: name, Inputs: []string{"tool-" + name}, Outputs: []string{"out", "lib"}, OutputFiles: 20, OutputSize: 10_000})
			attributes = append(attributes, name)
		}
	}
	l.text = append(l.text, testbed.Derivation{Name: byHash})
	attributes = append(attributes, byHash)
	startBuild(t, l.builders[1], writeExpression(t, l.builders[1], l.text...), attributes).mustSucceed(t)
	l.proxy = startProxy(t, bed, world.ProxySpec{
		Builders:   []world.Builder{{Host: l.builders[0]}, {Host: l.builders[1], MaxJobs: 4}},
		Principals: []world.Principal{{Name: "reader", Role: "read", Keys: []testbed.Key{l.key}}},
	})
	for _, b := range l.builders {
		waitLine(t, l.proxy, 0, world.Message("builder's store is listed", "builder", b.Name()))
	}
	return l
}

// store is the proxy as a store. How signatures come is another matter.
func (l *legacy) store(scheme string) string {
	return scheme + "://proxy?ssh-key=" + l.key.File() + "&trusted=1"
}

// realise has a client get a relic's outputs from the proxy; it may build nothing.
func (l *legacy) realise(t *testing.T, client *testbed.Host, scheme, name string) (outputs []string) {
	t.Helper()
	file := writeExpression(t, client, l.text...)
	script := "export PATH=" + quietSSH + ":$PATH; drv=$(nix-instantiate " + file + " -A " + name + ") && " +
		"exec nix-store -r $drv --option substituters '" + l.store(scheme) + "'"
	paths, log := startScript(t, client, script).mustSucceed(t)
	if strings.Contains(log, "building '") {
		t.Errorf("something was built:\n%s", tail(log))
	}
	client.MustShell(t, "nix-store --verify-path "+strings.Join(paths, " "))
	tool := client.MustShell(t, "nix-store --query --outputs $(nix-instantiate "+file+" -A tool-"+name+")")
	if res, err := client.Shell(t.Context(), "nix-store --check-validity "+tool); err != nil || res.Status == 0 {
		t.Errorf("the dependency of the build came, too: %v", err)
	}
	return paths
}

// foundOn lists the fetches of a relic's outputs from builders.
func (l *legacy) foundOn(name string) (builders []string) {
	for _, line := range l.proxy.LinesSince(0) {
		if line.Msg == "found on a builder" && strings.HasSuffix(strings.TrimSuffix(line.Text("path"), "-lib"), "-"+name) {
			builders = append(builders, line.Text("builder"))
		}
	}
	return builders
}

// What a builder had before the proxy came is there for everybody, without a build
// and without what only its build needs; each path crosses the builder's line once,
// and afterwards no builder is needed. Guards against a proxy that knows only what
// was built through it.
func TestS24OutputsOnABuilderAreFound(t *testing.T) {
	l := startLegacy(t)
	for i, v := range versions {
		for _, scheme := range protocols {
			t.Run(v+" "+scheme, func(t *testing.T) {
				name := relic(v, scheme)
				l.realise(t, l.clients[v], scheme, name)
				// Others get it from the cache.
				l.realise(t, l.clients[versions[(i+1)%len(versions)]], scheme, name)
				if got := l.foundOn(name); len(got) != 2 || got[0] != "full" || got[1] != "full" {
					t.Errorf("fetched from %q", got)
				}
			})
		}
	}
	t.Run("S29 absent paths", l.testAbsent)
	t.Run("hash part", l.testHashPart)
	t.Run("frozen builders", l.testFrozen)
	for _, b := range l.builders {
		if err := b.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range versions {
		t.Run("S28 without builders "+v, func(t *testing.T) { l.testWithoutBuilders(t, v) })
	}
	for _, line := range l.proxy.LinesSince(0) {
		if line.Msg == "operation failed" || line.Msg == "session ended" {
			t.Errorf("a query was answered with an error: %s", line.Raw)
		}
	}
}

// byHash is a relic that is asked for by its hash part alone.
const byHash = "relic-by-hash"

// No command of Nix asks for a path by its hash part, but servers of binary caches
// that have the proxy as their store do: here it is asked in their words, by ssh.
// Guards against a question that a builder's daemon does not understand.
func (l *legacy) testHashPart(t *testing.T) {
	want := strings.TrimSpace(l.builders[1].MustShell(t, "nix-store --query --outputs $(nix-instantiate "+
		writeExpression(t, l.builders[1], l.text...)+" -A "+byHash+")"))
	cmd := l.clients[testbed.Nix234].Command(t.Context(), "ssh", "-i", l.key.File(), "proxy", "nix-daemon", "--stdio")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	store, err := worker.NewClient(t.Context(), struct {
		io.Reader
		io.WriteCloser
	}{out, in}, worker.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hashPart := strings.TrimPrefix(want, "/nix/store/")[:32]
	if got, err := store.QueryPathFromHashPart(t.Context(), hashPart); err != nil || got.String() != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	if got, err := store.QueryPathFromHashPart(t.Context(), strings.Repeat("0", 32)); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("of nothing: %v, %v", got, err)
	}
	if got := l.foundOn(byHash); len(got) != 1 || got[0] != "full" {
		t.Errorf("fetched from %q", got)
	}
}

// Guards against paths that nobody has and everybody is asked for: clients ask for
// all that they consider to build.
func (l *legacy) testAbsent(t *testing.T) {
	client := l.clients[testbed.Nix234]
	known := strings.Fields(client.MustShell(t, "nix-store --query --outputs $(nix-instantiate "+
		writeExpression(t, client, l.text...)+" -A "+relic(testbed.Nix28, "ssh")+")"))
	const alphabet = "0123456789abcdfghijklmnpqrsvwxyz"
	var asked strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&asked, "/nix/store/%s%c%c-absent\n", strings.Repeat("0", 30), alphabet[i/32], alphabet[i%32])
	}
	asked.WriteString(known[0] + "\n")
	if err := client.WriteFile(t.Context(), "/root/asked", []byte(asked.String())); err != nil {
		t.Fatal(err)
	}
	mark, began := l.proxy.Mark(), time.Now()
	answer := client.MustShell(t, "nix path-info --json --store '"+l.store("ssh-ng")+"' $(cat /root/asked)")
	t.Logf("1,000 absent paths in one session took %v", time.Since(began))
	if n := strings.Count(answer, "-absent\":null"); n != 1000 || !strings.Contains(answer, "narHash") {
		t.Errorf("%d of 1000 paths are absent: %s", n, tail(answer))
	}
	for _, line := range l.proxy.LinesSince(mark) {
		if line.Msg == "listed path was not found" || line.Msg == "found on a builder" {
			t.Errorf("a builder was asked: %s", line.Raw)
		}
	}
}

// Guards against clients that wait for a builder which does not answer, or are told
// of an error: they would not try another substituter.
func (l *legacy) testFrozen(t *testing.T) {
	client, holder := l.clients[testbed.Nix226], l.builders[1]
	file := writeExpression(t, client, l.text...)
	output := client.MustShell(t, "nix-store --query --outputs $(nix-instantiate "+file+" -A tool-"+relic(testbed.Nix28, "ssh")+")")
	if err := holder.Freeze(); err != nil {
		t.Fatal(err)
	}
	mark, began := l.proxy.Mark(), time.Now()
	res, err := client.Shell(t.Context(), "nix path-info --store '"+l.store("ssh-ng")+"' "+output)
	took := time.Since(began)
	if thawErr := holder.Thaw(); thawErr != nil {
		t.Fatal(thawErr)
	}
	if err != nil || res.Status == 0 {
		t.Errorf("the frozen builder's path: %+v, %v", res, err)
	}
	wantText(t, "the client's log", res.Stderr, "is not valid")
	if took > 5*time.Second {
		t.Errorf("answered after %v", took)
	}
	waitLine(t, l.proxy, mark, world.Message("listed path was not found", "builder", holder.Name()))
	eventually(t, "the path is found when the builder works again", patience, func() bool {
		res, err := client.Shell(t.Context(), "nix path-info --store '"+l.store("ssh-ng")+"' "+output)
		return err == nil && res.Status == 0
	})
}

// Guards against a substituter that is only as good as its builders.
func (l *legacy) testWithoutBuilders(t *testing.T, version string) {
	client := l.clients[version]
	for _, scheme := range protocols {
		name := relic(version, scheme)
		all := client.MustShell(t, "nix-store --query --outputs $(nix-instantiate "+writeExpression(t, client, l.text...)+" -A "+name+") | tr '\n' ' '")
		const drop = "nix-store --delete --ignore-liveness "
		client.MustShell(t, drop+all)
		l.realise(t, client, scheme, name)
		client.MustShell(t, drop+all+" && PATH="+quietSSH+":$PATH nix copy --no-check-sigs --from '"+l.store(scheme)+"' "+all+" && nix-store --verify-path "+all)
	}
}
