package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

const metricsAddress = "127.0.0.1:9822"

// scrape reads the metrics of a proxy on its own host: every series with its value.
func scrape(t *testing.T, proxy *world.Proxy) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for line := range strings.Lines(ask(t, proxy.Host(), "/metrics")) {
		line = strings.TrimSpace(line)
		end := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || end < 0 {
			continue
		}
		value, err := strconv.ParseFloat(line[end+1:], 64)
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		all[line[:end]] = value
	}
	return all
}

// ask is what a host gets from the proxy's address of metrics, or why it gets nothing.
func ask(t *testing.T, host *testbed.Host, path string) string {
	t.Helper()
	return host.MustShell(t, fmt.Sprintf("busybox wget -qO- http://%s%s 2>&1 || true", metricsAddress, path))
}

// The numbers of the proxy are those of real builds, on the machine itself and nowhere
// else. Guards against a dashboard that shows another world than there is.
func TestMetricsTellOfRealBuilds(t *testing.T) {
	bed, key, builders, client := twoBuilders(t)
	spec := world.ProxySpec{
		Builders:   []world.Builder{{Host: builders[0], MaxJobs: 2, SpeedFactor: 2}, {Host: builders[1], Systems: []string{"riscv64-linux"}}},
		Principals: []world.Principal{{Name: "alice", Keys: []testbed.Key{key}}},
		Extra:      fmt.Sprintf("metrics: {listen: %q}\n", metricsAddress),
	}
	proxy := startProxy(t, bed, spec)
	setMachines(t, client, proxy.Machine(key))
	eventually(t, "the proxy is ready", patience, func() bool { return ask(t, proxy.Host(), "/ready") == "ready\n" })
	if got := ask(t, proxy.Host(), "/draining"); !strings.Contains(got, "503") {
		t.Errorf("/draining: %q", got)
	}
	if got := client.MustShell(t, "busybox wget -T 2 -qO- http://proxy:9822/metrics 2>&1 || true"); strings.Contains(got, "nixbastion_") {
		t.Error("another machine reads the metrics")
	}

	long := gated("long")
	run, log := startWatched(t, client, long)
	awaitText(t, client, log, "before the gate")
	during := scrape(t, proxy)
	openGate(t, builders[0], "long")
	run.mustSucceed(t)
	build(t, client, testbed.Derivation{Name: "large", OutputSize: 4 << 20, Random: true})
	startBuild(t, client, writeExpression(t, client, testbed.Derivation{Name: "wrong", ExitStatus: 1}), []string{"wrong"}).mustFail(t)
	after := scrape(t, proxy)
	for series, want := range map[string]float64{
		`nixbastion_builder_slots_used{builder="b1"}`:  1,
		`nixbastion_builder_up{builder="b2"}`:          1,
		`nixbastion_ssh_logins_total{result="failed"}`: 0,
	} {
		if during[series] != want {
			t.Errorf("while a build runs %s is %v, not %v", series, during[series], want)
		}
	}
	for series, want := range map[string]float64{
		`nixbastion_builds_total{builder="b1",result="built",system="NATIVE"}`:  2,
		`nixbastion_builds_total{builder="b1",result="failed",system="NATIVE"}`: 1,
		`nixbastion_build_requests_total{result="started"}`:                     3,
		`nixbastion_build_duration_seconds_count{system="NATIVE"}`:              3,
		`nixbastion_builder_slots_used{builder="b1"}`:                           0,
		`nixbastion_queue_length{system="NATIVE"}`:                              0,
	} {
		series = strings.ReplaceAll(series, "NATIVE", testbed.NativeSystem)
		if after[series] != want {
			t.Errorf("%s is %v, not %v", series, after[series], want)
		}
	}
	for _, series := range []string{`nixbastion_builder_received_bytes_total{builder="b1"}`, "nixbastion_ssh_sent_bytes_total"} {
		if grown := after[series] - during[series]; grown < 4<<20 || grown > 8<<20 {
			t.Errorf("%s has grown by %v for an output of 4 MiB", series, grown)
		}
	}
	for series := range after {
		for _, word := range []string{"alice", "wrong", "large", client.Name()} {
			if strings.Contains(series, word) {
				t.Errorf("%s tells of %s", series, word)
			}
		}
	}

	spec.Builders = spec.Builders[:1]
	if err := proxy.Reload(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for series := range scrape(t, proxy) {
		if strings.Contains(series, `"b2"`) || strings.Contains(series, "riscv64") {
			t.Errorf("%s is still told", series)
		}
	}
}
