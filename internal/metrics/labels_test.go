package metrics

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// gathered are all series of ours, by name and labels: "builds_total{builder=b1,...}".
func gathered(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		name, ours := strings.CutPrefix(f.GetName(), namespace+"_")
		if !ours {
			continue
		}
		for _, s := range f.Metric {
			all[name+labelsText(s)] = valueOf(s)
		}
	}
	return all
}

func labelsText(m *dto.Metric) string {
	var pairs []string
	for _, l := range m.Label {
		pairs = append(pairs, l.GetName()+"="+l.GetValue())
	}
	return "{" + strings.Join(pairs, ",") + "}"
}

func valueOf(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Histogram != nil:
		return float64(m.Histogram.GetSampleCount())
	}
	return m.Gauge.GetValue()
}

// hostile are names that peers might send in place of a system, a builder or an
// operation.
func hostile(i int) string {
	return []string{"x86_64-linux\n", "\xff\xfe", "", `a"} 1`, strings.Repeat("x", 1<<16), "user-%d"}[i%6] + fmt.Sprint(i)
}

// everything counts all that has a label of a name.
func everything(m *Metrics, name string) {
	for r := range buildResults {
		m.Build(name, name, BuildResult(r))
	}
	for r := range attemptResults {
		m.Attempt(name, AttemptResult(r))
	}
	m.BuildDuration(name, time.Second)
	m.QueueWait(name, time.Second)
	m.Operation(name, time.Second, true)
}

// Guards against series without number: whatever peers say, labels are those of the
// policy and one word for all the rest.
func TestHostileNamesMakeNoSeries(t *testing.T) {
	m := New("test")
	m.SetLabels([]string{"b1"}, []string{"x86_64-linux"})
	m.Watch(func() State {
		s := State{Queue: Queue{Length: map[string]int{"x86_64-linux": 1}}, Refusals: map[string]uint64{"login": 2}}
		for i := range 100 {
			s.Refusals[hostile(i)] = 1
			s.Queue.Length[hostile(i)] = 1
		}
		return s
	})
	everything(m, "b1")
	for i := range 1000 {
		everything(m, hostile(i))
		m.Operation(fmt.Sprintf("Op%d", i), time.Second, true)
	}
	all := gathered(t, m)
	if n := all["queue_length{system=other}"]; n != 100 {
		t.Errorf("%v of 100 that wait are counted as other", n)
	}
	if all["refusals_total{result=other}"] != 100 || all["refusals_total{result=login}"] != 2 || all["refusals_total{result=session}"] != 0 {
		t.Error("refusals for reasons that are not known are not counted as other")
	}
	if n := all["builds_total{builder=other,result=built,system=other}"]; n != 1000 {
		t.Errorf("%v builds are counted as other, not 1000", n)
	}
	if n := all["operation_duration_seconds{op=other}"]; n != 2000-(maxOps-3) { // b1, other and as many as there is room for
		t.Errorf("%v operations are counted as other", n)
	}
	perOp := 0
	for series := range all {
		if strings.HasPrefix(series, "operation_duration_seconds") {
			perOp++
			continue
		}
		if strings.HasPrefix(series, "operation_errors") {
			continue
		}
		for _, pair := range strings.Split(strings.Trim(series[strings.Index(series, "{"):], "{}"), ",") {
			name, value, _ := strings.Cut(pair, "=")
			known := map[string][]string{"system": {"x86_64-linux", Other}, "builder": {"b1", Other, ""}}
			if allowed := known[name]; allowed != nil && !slices.Contains(allowed, value) {
				t.Errorf("series %.80q", series)
			}
		}
	}
	if perOp > maxOps || perOp < maxOps/2 {
		t.Errorf("%d operations are told apart, at most %d", perOp, maxOps)
	}
}

// Guards against label names that stand for a person or an address, or for anything
// else without bound.
func TestLabelsAreThoseThatAreBounded(t *testing.T) {
	for _, d := range exported() {
		for _, label := range d.labels {
			if !slices.Contains([]string{"builder", "system", "op", "result"}, label) && d.name != "nixbastion_build_info" {
				t.Errorf("%s has the label %s", d.name, label)
			}
		}
	}
}

// Guards against builders that stay on the dashboard for ever once they are removed,
// and against series that come back when their last build ends.
func TestRemovedBuildersLoseTheirSeries(t *testing.T) {
	m := New("test")
	m.SetLabels([]string{"b1", "b2"}, []string{"x86_64-linux", "riscv64-linux"})
	for _, system := range []string{"x86_64-linux", "riscv64-linux"} {
		for _, b := range []string{"b1", "b2"} {
			m.Build(system, b, BuildBuilt)
			m.Attempt(b, AttemptFault)
		}
		m.BuildDuration(system, time.Second)
		m.QueueWait(system, time.Second)
	}
	m.SetLabels([]string{"b2"}, []string{"x86_64-linux"})
	m.Build("riscv64-linux", "b1", BuildBuilt) // it ran when they were removed
	m.Attempt("b1", AttemptAnswered)
	m.BuildDuration("riscv64-linux", time.Second)
	all := gathered(t, m)
	for series := range all {
		if strings.Contains(series, "b1") || strings.Contains(series, "riscv64-linux") {
			t.Errorf("%s is still there", series)
		}
	}
	for _, series := range []string{"builds_total{builder=b2,result=built,system=x86_64-linux}", "build_attempts_total{builder=b2,result=fault}", "builds_total{builder=other,result=built,system=other}"} {
		if all[series] == 0 {
			t.Errorf("%s is gone", series)
		}
	}
}

// Guards against a scrape that fails, or that sees a removed builder, while builds end
// and the policy is reloaded. It looks at nothing without the race detector but that no
// series survives.
func TestReloadsCountsAndScrapesAtOnce(t *testing.T) {
	m := New("test")
	m.Watch(func() State { return State{Builders: []Builder{{Name: "b1"}, {Name: "b2"}}} })
	var working sync.WaitGroup
	done := make(chan struct{})
	for i := range 4 {
		working.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					everything(m, fmt.Sprintf("b%d", i))
				}
			}
		})
	}
	for range 10 {
		m.SetLabels([]string{"b1", "b2", "b3"}, []string{"b1", "b2"})
		gathered(t, m)
		m.SetLabels([]string{"b1"}, []string{"b1"})
		for series := range gathered(t, m) {
			if strings.HasPrefix(series, "builds_total") && strings.Contains(series, "b2") {
				t.Errorf("%s is there after its builder was removed", series)
			}
		}
	}
	close(done)
	working.Wait()
}

// Guards against a rate that misses the first event: what counts with fixed results
// begins at 0.
func TestFixedResultsBeginAtZero(t *testing.T) {
	m := New("test")
	m.SetLabels([]string{"b1"}, []string{"x86_64-linux"})
	m.Watch(func() State { return State{} })
	all := gathered(t, m)
	for _, series := range []string{
		"refusals_total{result=max_startups}",
		"ssh_logins_total{result=refused}", "ssh_connections_total{result=refused}", "ssh_jumps_total{result=failed}",
		"build_requests_total{result=known}", "policy_reloads_total{result=refused}", "build_attempts_total{builder=b1,result=fault}",
		"queue_wait_seconds{system=x86_64-linux}",
	} {
		if n, there := all[series]; !there || n != 0 {
			t.Errorf("%s is %v, there: %v", series, n, there)
		}
	}
	if all["policy_last_reload_successful{}"] != 1 || all["policy_last_reload_success_timestamp_seconds{}"] == 0 {
		t.Error("the policy of the start does not count as taken")
	}
}

// Guards against a proxy without metrics that does not work.
func TestNilCountsNothing(t *testing.T) {
	var m *Metrics
	everything(m, "b1")
	m.Connection(ConnectionRefused)
	m.Login(LoginSuccess)
	m.Jump(JumpFailed)
	m.BuildRequest(RequestKnown)
	m.Reload(nil)
	m.SetLabels(nil, nil)
	m.Watch(nil)
}
