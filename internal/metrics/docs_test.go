package metrics

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// Where the files for people and for Prometheus are.
const (
	tableFile     = "../../docs/monitoring/README.md"
	alertsFile    = "../../docs/monitoring/alerts.yaml"
	dashboardFile = "../../docs/monitoring/dashboard.json"
)

var update = flag.Bool("update", false, "write the table of metrics into docs/monitoring/README.md, to be read before it is committed")

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const (
	tableBegin = "<!-- metrics: begin -->\n"
	tableEnd   = "<!-- metrics: end -->\n"
)

func table() string {
	var b strings.Builder
	b.WriteString("| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, d := range exported() {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", d.name, d.kind, strings.Join(d.labels, ", "), d.help)
	}
	return b.String()
}

// Guards against a metric that nobody can look up, and against a table that tells of
// others than there are.
func TestTheTableHasEveryMetric(t *testing.T) {
	text := readFile(t, tableFile)
	before, rest, begins := strings.Cut(text, tableBegin)
	got, after, ends := strings.Cut(rest, tableEnd)
	if !begins || !ends {
		t.Fatalf("%s has no table between %q and %q", tableFile, tableBegin, tableEnd)
	}
	want := table()
	if *update {
		if err := os.WriteFile(tableFile, []byte(before+tableBegin+want+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("the table is not that of what is exported (go test ./internal/metrics -update):\n%s", want)
	}
}

// Guards against results in the table's explanations that are not counted, and the
// other way round.
func TestTheTextHasEveryResult(t *testing.T) {
	text := readFile(t, tableFile)
	for metric, words := range map[string][]string{
		"builds_total": buildResults[:], "build_attempts_total": attemptResults[:], "build_requests_total": requestResults[:],
		"ssh_logins_total": loginResults[:], "ssh_connections_total": connectionResults[:], "ssh_jumps_total": jumpResults[:], "policy_reloads_total": reloadResults[:], "refusals_total": refusalResults[:],
	} {
		_, section, found := strings.Cut(text, "\n- `nixbastion_"+metric+"`:")
		section, _, _ = strings.Cut(section, "\n- ")
		section, _, _ = strings.Cut(section, "\n\n")
		if !found {
			t.Errorf("the results of %s are not explained", metric)
			continue
		}
		var said []string
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(section, -1) {
			said = append(said, m[1])
		}
		if !slices.Equal(said, words) {
			t.Errorf("%s: the text explains %v, not %v", metric, said, words)
		}
	}
}

// foreign are metrics that Prometheus or the library brings along.
var foreign = []string{"up", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds", "process_start_time_seconds", "go_goroutines"}

var (
	metricName = regexp.MustCompile(`\b(?:nixbastion|go|process)_[a-z0-9_]+`)
	matcher    = regexp.MustCompile(`\{([^}]*)\}`)
	labelName  = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`)
	grouping   = regexp.MustCompile(`\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
)

// checkExpression guards against an expression that can never match: a metric, a label
// or a result that does not exist.
func checkExpression(t *testing.T, where, expr string) (metrics []string) {
	t.Helper()
	kinds, labels, results := map[string]string{}, map[string]bool{"le": true, "job": true, "instance": true}, map[string]bool{}
	for _, d := range exported() {
		kinds[d.name] = d.kind
		for _, l := range d.labels {
			labels[l] = true
		}
	}
	for _, words := range [][]string{buildResults[:], attemptResults[:], requestResults[:], loginResults[:], connectionResults[:], jumpResults[:], reloadResults[:], refusalResults[:]} {
		for _, word := range words {
			results[word] = true
		}
	}
	for _, name := range metricName.FindAllString(expr, -1) {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if cut, is := strings.CutSuffix(name, suffix); is && kinds[cut] == "histogram" {
				base = cut
			}
		}
		switch {
		case kinds[base] == "histogram" && base == name:
			t.Errorf("%s: %s is a histogram, of which there are only _bucket, _sum and _count", where, name)
		case kinds[base] == "" && !slices.Contains(foreign, name):
			t.Errorf("%s: there is no metric %s", where, name)
		case kinds[base] == "counter" && !regexp.MustCompile(`(rate|increase|resets|changes)\((?:sum by \([^)]*\) \()?`+name).MatchString(expr):
			t.Errorf("%s: %s is a counter and its value means nothing by itself", where, name)
		}
		metrics = append(metrics, base)
	}
	for _, m := range matcher.FindAllStringSubmatch(expr, -1) {
		for _, l := range labelName.FindAllStringSubmatch(m[1], -1) {
			if !labels[l[1]] {
				t.Errorf("%s: there is no label %s", where, l[1])
			}
			for _, word := range strings.Split(l[2], "|") {
				if l[1] == "result" && !results[word] {
					t.Errorf("%s: there is no result %s", where, word)
				}
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		for _, name := range strings.Split(g[1], ",") {
			if name = strings.TrimSpace(name); name != "" && !labels[name] {
				t.Errorf("%s: there is no label %s", where, name)
			}
		}
	}
	if len(metrics) == 0 && !strings.Contains(expr, "up{") {
		t.Errorf("%s: %q looks at nothing of ours", where, expr)
	}
	return metrics
}

// alertRules are a file of Prometheus's, as far as we use it.
type alertRules struct {
	Groups []struct {
		Name  string
		Rules []alertRule
	}
}

type alertRule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

// Guards against alerts that Prometheus refuses, that never fire, and that wake
// somebody without a word of what to do.
func TestAlertsAreAboutMetricsThatExist(t *testing.T) {
	var file alertRules
	dec := yaml.NewDecoder(strings.NewReader(readFile(t, alertsFile)))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	text := readFile(t, tableFile)
	seen := map[string]bool{}
	for _, group := range file.Groups {
		for _, r := range group.Rules {
			checkExpression(t, r.Alert, r.Expr)
			if !strings.HasPrefix(r.Alert, "Nixbastion") || seen[r.Alert] {
				t.Errorf("the name %q is not ours, or stands twice", r.Alert)
			}
			seen[r.Alert] = true
			if !slices.Contains([]string{"critical", "warning"}, r.Labels["severity"]) {
				t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s: no summary, or no description of what to do", r.Alert)
			}
			if !strings.Contains(text, "`"+r.Alert+"`") {
				t.Errorf("%s is not in %s", r.Alert, tableFile)
			}
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d alerts: this test looks at little", len(seen))
	}
}

// panel is a panel of Grafana's, as far as we use it.
type panel struct {
	ID      int
	Title   string
	Type    string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr, RefID string }
}

func (p panel) overlaps(o panel) bool {
	a, b := p.GridPos, o.GridPos
	return a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H
}

// Guards against a dashboard with empty panels, and against metrics that only the table
// knows.
func TestDashboardShowsMetricsThatExist(t *testing.T) {
	var board struct {
		Title, UID string
		Panels     []panel
		Templating struct {
			List []struct{ Name, Type string }
		}
	}
	text := readFile(t, dashboardFile)
	if err := json.Unmarshal([]byte(text), &board); err != nil {
		t.Fatal(err)
	}
	if board.UID == "" || len(board.Templating.List) == 0 || board.Templating.List[0].Type != "datasource" {
		t.Error("the dashboard has no uid, or asks for no data source")
	}
	shown := map[string]bool{}
	for i, p := range board.Panels {
		for _, other := range board.Panels[:i] {
			if p.ID == other.ID || p.overlaps(other) {
				t.Errorf("panels %q and %q have one id, or overlap", p.Title, other.Title)
			}
		}
		if p.GridPos.W <= 0 || p.GridPos.H <= 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q is at %+v", p.Title, p.GridPos)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			for _, name := range checkExpression(t, p.Title, target.Expr) {
				shown[name] = true
			}
		}
	}
	alerts := readFile(t, alertsFile)
	for _, d := range exported() {
		if !shown[d.name] && !strings.Contains(alerts, d.name) && !slices.Contains(unseen, d.name) {
			t.Errorf("%s is in no panel and no alert", d.name)
		}
	}
}

// unseen are metrics for those who look further.
var unseen = []string{
	"nixbastion_builder_load1", "nixbastion_builder_differing_inputs_total", "nixbastion_builder_memory_available_bytes", "nixbastion_cache_scrubbed_bytes_total", "nixbastion_cache_arriving_paths",
	"nixbastion_cache_quarantined_bytes", "nixbastion_cache_differing_paths_total", "nixbastion_builder_fetching_builds", "nixbastion_builder_dials_failed_total",
	"nixbastion_cache_broken_paths_total", "nixbastion_policy_reloads_total", "nixbastion_policy_last_reload_success_timestamp_seconds", "nixbastion_ssh_jumps_total",
}
