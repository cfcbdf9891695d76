package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// ownCores is what builders say in their own nix.conf.
const ownCores = 7

// limitRules are the policy's, by names of derivations.
const limitRules = `build_limits:
  - {name: "three-*", cores: 3}
  - {name: "five-*", cores: 5, max_silent: 1h, timeout: 2h, max_log_size: 10MiB}
  - {name: "slow-*", timeout: 3s}
  - {name: "silent-*", max_silent: 2s}
  - {name: "loud-*", max_log_size: 1KiB}
`

// A ruled builder is one kind of account and protocol that the policy's limits must
// get through.
type ruled struct {
	nix, account, protocol string
	host, client           *testbed.Host
}

func (r *ruled) name() string { return strings.Join([]string{word(r.nix), r.account, r.protocol}, "-") }

// startRuled starts a proxy with a builder of each kind for each version. The root account has the store
// to itself, the other one stands before the machine's daemon.
func startRuled(t *testing.T, versions ...string) (*world.Proxy, []*ruled) {
	t.Helper()
	bed := testbed.ForTest(t)
	key := bed.UserKey("alice")
	spec := world.ProxySpec{Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}}, Extra: limitRules}
	var all []*ruled
	var clients []*testbed.Host
	clientVersions := []string{testbed.Nix226, testbed.Nix234, testbed.Nix28}
	for i, v := range versions {
		client := bed.MustStart(t, testbed.HostSpec{Name: "client-" + word(v), Kind: testbed.Client, Nix: clientVersions[i%len(clientVersions)], Keys: []testbed.Key{key}})[0]
		clients = append(clients, client)
		for _, r := range []ruled{
			{account: testbed.TrustedAccount, protocol: "ssh-ng"}, {account: "root", protocol: "ssh-ng"}, {account: testbed.TrustedAccount, protocol: "ssh"},
		} {
			r.nix, r.client = v, client
			r.host = bed.MustStart(t, testbed.HostSpec{
				Name: r.name(), Kind: testbed.Builder, Nix: v, Features: []string{r.name()}, NixConf: []string{fmt.Sprintf("cores = %d", ownCores)},
			})[0]
			spec.Builders = append(spec.Builders, world.Builder{
				Host: r.host, Account: r.account, Features: []string{r.name()}, Extra: []string{"protocol: " + r.protocol},
			})
			all = append(all, &r)
		}
	}
	proxy := startProxy(t, bed, spec)
	for _, client := range clients {
		setMachines(t, client, proxy.Machine(key))
	}
	return proxy, all
}

// What the policy says of builds reaches them on real builders, whichever account
// and protocol; builds for which no rule says anything get the builder's own again,
// on sessions that wait for the next user. Guards against settings that get no further
// than a program in front of the builder's daemon, and against those that stay for
// whoever comes next.
func TestThePolicyBoundsBuilds(t *testing.T) {
	t.Parallel() // it mostly waits
	proxy, all := startRuled(t, versions...)
	for _, r := range all {
		t.Run(r.name(), func(t *testing.T) {
			for _, b := range []struct {
				prefix string
				cores  int
			}{{"any", ownCores}, {"three", 3}, {"five", 5}, {"again", ownCores}, {"three-again", 3}} {
				d := testbed.Derivation{Name: b.prefix + "-" + r.name(), RequiredFeatures: []string{r.name()}, Script: `echo "cores: $NIX_BUILD_CORES." >&2`}
				_, log := build(t, r.client, d)
				wantText(t, "the log of "+d.Name, log, fmt.Sprintf("cores: %d.", b.cores))
			}
			r.testLimits(t, proxy)
		})
	}
	for _, r := range all {
		awaitBuilds(t, r.host, 0, 20*time.Second)
	}
}

// testLimits has builds ended by each limit, by the proxy.
func (r *ruled) testLimits(t *testing.T, proxy *world.Proxy) {
	for _, l := range []limit{
		{"slow", "", "for i in $(seq 240); do echo still at it >&2; sleep 0.5; done", "timed out after 3 seconds (timeout of build_limits in the proxy's policy)", false},
		{"silent", "", "sleep 120", "timed out after 2 seconds of silence (max_silent of build_limits in the proxy's policy)", false},
		{"loud", "", "for i in $(seq 100); do echo line $i of more than a kibibyte >&2; done; sleep 120",
			"killed after writing more than 1024 bytes of log output (max_log_size of build_limits in the proxy's policy)", false},
	} {
		d := testbed.Derivation{Name: l.name + "-" + r.name(), RequiredFeatures: []string{r.name()}, Script: l.script}
		log := startBuild(t, r.client, writeExpression(t, r.client, d), []string{d.Name}).mustFail(t)
		wantText(t, "what the client reads", log, l.words)
		if strings.Contains(log, "another builder") {
			t.Errorf("it was tried again:\n%s", tail(log))
		}
	}
}

// A builder keeps the time limit of the policy by itself when the proxy cannot tell it
// to end the build any more. Guards against builds that nothing bounds once the
// connection is gone.
func TestABuilderKeepsThePolicysLimitsItself(t *testing.T) {
	t.Parallel() // it mostly waits
	proxy, all := startRuled(t, testbed.Nix234)
	for _, r := range all {
		d := testbed.Derivation{Name: "slow-alone-" + r.name(), RequiredFeatures: []string{r.name()}, Script: "while :; do echo still at it >&2; sleep 0.5; done"}
		run, _ := startWatched(t, r.client, d)
		awaitBuilds(t, r.host, 1, patience)
		cable(t, proxy.Host().Cut)
		awaitBuilds(t, r.host, 0, 20*time.Second) // keep-alive gives the connection up later
		cable(t, proxy.Host().Restore)
		run.mustFail(t)
	}
}
