package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// A limit is one that clients set for their builds, and a build that breaks it.
type limit struct {
	name    string
	options string
	script  string
	// words are what the client reads in the end.
	words string
	// byClient tells that the client counts too, and may be the first to end it.
	byClient bool
}

var limits = []limit{
	{"silent", "--max-silent-time 2", "sleep 120", "timed out after 2 seconds of silence", false},
	{"slow", "--timeout 3", "for i in $(seq 240); do echo still at it >&2; sleep 0.5; done", "timed out after 3 seconds", false},
	{"loud", "--option max-build-log-size 40", "echo these are many more than the forty bytes of the limit >&2; sleep 120",
		"killed after writing more than 40 bytes of log output", true},
	{"modest", "--max-silent-time 30 --timeout 60 --option max-build-log-size 4000", "echo hello >&2", "", false},
}

// limitScene is a builder of either protocol and a client of every version.
type limitScene struct {
	proxy             *world.Proxy
	builders, clients []*testbed.Host
}

// builderKinds are the protocols of the builders by their name, which is their only
// feature, too.
var builderKinds = map[string]string{"worker": "ssh-ng", "serve": "ssh"}

func startLimitScene(t *testing.T) *limitScene {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	s := &limitScene{}
	spec := world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}}}
	for kind, protocol := range builderKinds {
		host := bed.MustStart(t, testbed.HostSpec{Name: kind, Kind: testbed.Builder, MaxJobs: 12, Features: []string{kind}})[0]
		s.builders = append(s.builders, host)
		spec.Builders = append(spec.Builders, world.Builder{Host: host, Features: []string{kind}, MaxJobs: 12, Extra: []string{"protocol: " + protocol}})
	}
	for _, v := range versions {
		s.clients = append(s.clients, bed.MustStart(t, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: v, Keys: []testbed.Key{key}})...)
	}
	s.proxy = startProxy(t, bed, spec)
	line := s.proxy.Machine(key)
	line.Store, line.MaxJobs = "ssh://proxy", 24
	for _, client := range s.clients {
		setMachines(t, client, line)
	}
	return s
}

// test has a build that breaks each limit, from every client on every builder, all at
// once, and waits until nothing of them runs.
func (s *limitScene) test(t *testing.T, limits ...limit) {
	t.Run("builds", func(t *testing.T) {
		for i, client := range s.clients {
			for kind := range builderKinds {
				for _, l := range limits {
					t.Run(versions[i]+" on "+kind+", "+l.name, func(t *testing.T) {
						t.Parallel()
						l.test(t, s.proxy, client, kind)
					})
				}
			}
		}
	})
	for _, builder := range s.builders {
		awaitBuilds(t, builder, 0, 20*time.Second)
	}
}

// A client by ssh:// sends the limits of its builds along. Guards against builds
// that run on after theirs, on either kind of builder: neither keeps them itself.
func TestLimitsOfServeClientsEndTheirBuilds(t *testing.T) {
	startLimitScene(t).test(t, limits...)
}

// Guards against builds that run on because their clients went in a moment in which
// the builder's daemon did not heed it: that of the start, and that of a line of the
// log, which clients that count lines prefer.
func TestSoakLoudBuildsEndWithTheirClients(t *testing.T) {
	onlyInSoak(t)
	s := startLimitScene(t)
	line := counted(t)
	loud := limits[slices.IndexFunc(limits, func(l limit) bool { return l.byClient })]
	for n := range 100 {
		l := loud
		l.name = fmt.Sprintf("%s%d", loud.name, n)
		line.round(t, func(t *testing.T) { s.test(t, l) })
	}
}

func (l limit) test(t *testing.T, proxy *world.Proxy, client *testbed.Host, kind string) {
	d := testbed.Derivation{Name: strings.Join([]string{l.name, kind, client.Name()}, "-"), RequiredFeatures: []string{kind}, Script: l.script}
	mark := proxy.Mark()
	run := startScript(t, client, buildScript(writeExpression(t, client, d), []string{d.Name})+" "+l.options)
	if l.words == "" {
		run.mustSucceed(t)
		return
	}
	wantText(t, "what the client reads", run.mustFail(t), l.words)
	if l.byClient {
		return
	}
	found := waitLine(t, proxy, mark, func(line world.Line) bool {
		return line.Msg == "build ended by a limit" && strings.HasSuffix(line.Text("drv"), "-"+d.Name+".drv")
	})
	wantText(t, "the proxy's log", found.Raw, l.words)
}
