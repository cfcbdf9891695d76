package proxy

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// defaultBuildsShown is how many builds that have ended an answer lists.
const defaultBuildsShown = 20

// buildFilter picks builds. The zero value of a field picks all.
type buildFilter struct {
	principal, builder, system string
	// failed picks those that ended without outputs against their clients' will.
	failed bool
	// since picks those that are under way, or ended no longer ago.
	since time.Duration
	// limit is how many are listed of those that have ended; 0 is all.
	limit int
}

var filterOptions = []option{
	{"--principal", true, func(q *question, v string) error { q.filter.principal = v; return nil }},
	{"--builder", true, func(q *question, v string) error { q.filter.builder = v; return nil }},
	{"--system", true, func(q *question, v string) error { q.filter.system = v; return nil }},
	{"--failed", false, func(q *question, _ string) error { q.filter.failed = true; return nil }},
	{"--since", true, (*question).takeSince},
	{"--limit", true, (*question).takeLimit},
}

func (q *question) takeSince(value string) error {
	d, err := parseSpan(value)
	if err != nil || d <= 0 {
		return usage("--since takes a duration such as 30m, 12h or 7d, and not %s", quoted(value))
	}
	q.filter.since = d
	return nil
}

// parseSpan reads a duration, of which one in days is a whole number.
func parseSpan(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(text)
}

func (q *question) takeLimit(value string) error {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return usage("--limit takes a number of builds, 0 for all, and not %s", quoted(value))
	}
	q.filter.limit = int(n)
	return nil
}

func (f *buildFilter) picks(r *buildRecord, now time.Time) bool {
	ran := r.Builder == f.builder || slices.ContainsFunc(r.Attempts, func(a attemptRecord) bool { return a.Builder == f.builder })
	return (f.principal == "" || slices.Contains(r.Principals, f.principal)) &&
		(f.builder == "" || ran) &&
		(f.system == "" || r.System == f.system) &&
		(!f.failed || r.failed()) &&
		(f.since == 0 || r.Ended == nil || now.Sub(*r.Ended) <= f.since)
}

// buildsAnswer is what runs and what has ended.
type buildsAnswer struct {
	// UnderWay are those that wait or run, by arrival.
	UnderWay []*buildRecord `json:"under_way"`
	// Ended are those that have ended, the latest first: of EndedCount that were
	// asked for as many as the limit says.
	EndedCount int            `json:"ended_count"`
	Ended      []*buildRecord `json:"ended"`

	now time.Time
}

func (p *Proxy) listBuilds(a *asker, q *question) (answer, error) {
	if err := noArgs("builds", q.args); err != nil {
		return nil, err
	}
	if err := a.mayAsk("what others have built"); err != nil {
		return nil, err
	}
	now, from := time.Now(), time.Time{}
	if q.filter.since > 0 {
		from = now.Add(-q.filter.since)
	}
	underWay, ended := p.builds.ledger.since(a, from)
	return newBuilds(underWay, ended, &q.filter, now), nil
}

func newBuilds(underWay, ended []*buildRecord, f *buildFilter, now time.Time) *buildsAnswer {
	b := &buildsAnswer{UnderWay: []*buildRecord{}, Ended: []*buildRecord{}, now: now}
	for _, r := range underWay {
		if f.picks(r, now) {
			b.UnderWay = append(b.UnderWay, r)
		}
	}
	for _, r := range ended {
		if !f.picks(r, now) {
			continue
		}
		if b.EndedCount++; f.limit == 0 || len(b.Ended) < f.limit {
			b.Ended = append(b.Ended, r)
		}
	}
	return b
}

func (b *buildsAnswer) print(page *page) {
	page.heading("Under way: %d", len(b.UnderWay))
	rows := [][]string{{"BUILD", "NAME", "SYSTEM", "FOR", "STATE", "ON", "SINCE", "NOTE"}}
	for _, r := range b.UnderWay {
		rows = append(rows, []string{r.ID, r.Name, r.System, list(r.Principals), r.stateText(), cmp.Or(r.Builder, "-"), span(r.took(b.now)), r.note()})
	}
	if len(rows) > 1 {
		page.table(rows, 4)
	}
	page.line("")
	page.heading("%s", endedText(len(b.Ended), b.EndedCount))
	rows = [][]string{{"BUILD", "NAME", "SYSTEM", "FOR", "RESULT", "ON", "TOOK", "ENDED", "NOTE"}}
	for _, r := range b.Ended {
		rows = append(rows, []string{
			r.ID, r.Name, r.System, list(r.Principals), r.Result, cmp.Or(r.Builder, "-"), span(r.took(b.now)), span(b.now.Sub(*r.Ended)) + " ago", r.note(),
		})
	}
	if len(rows) > 1 {
		page.table(rows, 4)
	}
}

func endedText(shown, all int) string {
	if shown == all {
		return "Ended: " + strconv.Itoa(all)
	}
	return "Ended: the last " + strconv.Itoa(shown) + " of " + strconv.Itoa(all) + " (--limit N shows more, 0 all)"
}

// noteSize is how much of an error a row has, in bytes.
const noteSize = 100

// note is what else there is to say of a build, in a few words.
func (r *buildRecord) note() string {
	var notes []string
	if r.Ended == nil && r.Clients == 0 {
		notes = append(notes, "no client waits for it")
	}
	for _, a := range r.Attempts {
		notes = append(notes, a.Builder+": "+cut(a.Reason))
	}
	if r.Error != "" {
		notes = append(notes, cut(r.Error))
	}
	return strings.Join(notes, "; ")
}

func cut(text string) string {
	if len(text) > noteSize {
		return strings.ToValidUTF8(text[:noteSize], "") + "..."
	}
	return text
}
