package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/route"
)

// maxQueueShown is how many waiting builds an answer lists; the rest is a number.
const maxQueueShown = 100

// statusAnswer says how builders and queue are.
type statusAnswer struct {
	Version string `json:"version"`
	// Domains are those that the answer is about.
	Domains  []string        `json:"domains"`
	Builders []builderStatus `json:"builders"`
	// QueueLength counts all builds that wait, Queue has the first of them. It is
	// null for a key that may not build.
	QueueLength int             `json:"queue_length"`
	Queue       []waitingStatus `json:"queue"`
	// Policy is there for the admin alone.
	Policy *policyStatus `json:"policy,omitempty"`
	// Audit is there for the admin alone, while the audit log cannot be written.
	Audit *auditStatus `json:"audit,omitempty"`
	// Totals are for the admin alone.
	Totals *totals `json:"totals,omitempty"`
	// Refusals are how many were turned away, or made to wait, since the start, by the
	// limit. It is there for the admin alone, and if there were any.
	Refusals map[Refusal]uint64 `json:"refusals,omitempty"`
}

// builderStatus is one builder.
type builderStatus struct {
	Name string `json:"name"`
	// State is "up", "down", "suspended", "overloaded", "drained", "asleep" or "waking"
	// for one with a wake command, or "removed" for one that is not in the policy any
	// more and still builds.
	State string `json:"state"`
	// Reason is why it is not up, for people. Empty for a key that may not build.
	Reason string `json:"reason,omitempty"`
	// Busy of MaxJobs slots are taken, by builds of any domain.
	Busy int `json:"busy"`
	// Fetching is of how many builds that have ended there the outputs are still on
	// their way from the builder.
	Fetching          int      `json:"fetching,omitempty"`
	MaxJobs           int      `json:"max_jobs"`
	Systems           []string `json:"systems"`
	Features          []string `json:"features"`
	MandatoryFeatures []string `json:"mandatory_features"`
	SpeedFactor       float64  `json:"speed_factor"`
	// Load is how busy the builder is with all that runs there. Without it LoadUnknown
	// says why it is not known. Neither is there for a key that may not build.
	Load        *loadStatus `json:"load,omitempty"`
	LoadUnknown string      `json:"load_unknown,omitempty"`
	// DifferingInputs is how many inputs the builder was found to hold with other
	// bytes than ours, which were used (builder_content: accept).
	DifferingInputs int64 `json:"differing_inputs,omitempty"`
	// Domains is there for the admin alone.
	Domains []string `json:"domains,omitempty"`
}

// waitingStatus is one build that waits for a builder.
type waitingStatus struct {
	Derivation string   `json:"derivation"`
	Principal  string   `json:"principal"`
	Domain     string   `json:"domain"`
	System     string   `json:"system"`
	Features   []string `json:"features"`
	// Position among those that are in each other's way, 1 being next.
	Position int `json:"position"`
	// Build is its id among the builds under way.
	Build string `json:"build,omitempty"`
	// WaitingSeconds since it came.
	WaitingSeconds int64 `json:"waiting_seconds"`
	// Reason is what the client is told, for people.
	Reason string `json:"reason"`
	// ExpectedBuilder is where it is thought to run, in ExpectedStartSeconds from now;
	// empty if that is not known.
	ExpectedBuilder      string  `json:"expected_builder,omitempty"`
	ExpectedStartSeconds float64 `json:"expected_start_seconds,omitempty"`

	name string // of the derivation
}

func (p *Proxy) status(a *asker, args []string) (answer, error) {
	if err := noArgs("status", args); err != nil {
		return nil, err
	}
	s := newStatus(p.glances.take(p.router), p.policy.Current(), p.version, a, p.builds.ledger.ids(), time.Now())
	for i := range s.Builders {
		b := &s.Builders[i]
		b.DifferingInputs = p.builds.differences.of(b.Name)
		b.Fetching = p.builds.copies.of(b.Name)
		if word := p.sleepers.stateOf(b.Name); b.State == "up" && word != "" {
			b.State = word
		}
	}
	if a.seesReasons() {
		s.addLoads(p.pool.Load, time.Now())
	}
	if a.client == nil {
		s.Policy = p.reloads.status(p.policy.Current())
		s.Audit = p.auditStatus()
		s.Totals = p.totals(a, time.Now())
	}
	s.addRefusals(a, p.Refusals())
	return s, nil
}

// newStatus makes an answer of what the asker may see of a state of the router.
func newStatus(state *route.Status, pol *policy.Policy, version string, a *asker, ids buildIDs, now time.Time) *statusAnswer {
	s := &statusAnswer{Version: version, Builders: []builderStatus{}}
	for _, d := range pol.Domains {
		if a.sees(d.Name) {
			s.Domains = append(s.Domains, d.Name)
		}
	}
	for i := range state.Builders {
		if b := &state.Builders[i]; slices.ContainsFunc(b.Domains, a.sees) {
			s.Builders = append(s.Builders, newBuilderStatus(b, pol, a))
		}
	}
	s.addQueue(state.Queue, a, ids, now)
	return s
}

func (s *statusAnswer) addQueue(queue []route.Queued, a *asker, ids buildIDs, now time.Time) {
	if a.seesReasons() {
		s.Queue = []waitingStatus{}
	}
	for i := range queue {
		if !a.sees(queue[i].Domain) {
			continue
		}
		s.QueueLength++
		if s.Queue != nil && len(s.Queue) < maxQueueShown {
			s.Queue = append(s.Queue, newWaiting(&queue[i], ids, now))
		}
	}
}

func newBuilderStatus(b *route.BuilderStatus, pol *policy.Policy, a *asker) builderStatus {
	s := builderStatus{
		Name: b.Name, State: stateOf(b), Busy: b.Busy, MaxJobs: b.MaxJobs,
		Systems: orNone(nil), Features: orNone(nil), MandatoryFeatures: orNone(nil),
	}
	if c := pol.BuilderNamed(b.Name); c != nil {
		s.Systems, s.SpeedFactor = slices.Sorted(maps.Keys(c.Systems)), c.SpeedFactor
		s.Features, s.MandatoryFeatures = orNone(c.Features), orNone(c.MandatoryFeatures)
	}
	if a.seesReasons() {
		s.Reason = b.Trouble
	}
	if a.client == nil {
		s.Domains = b.Domains
	}
	return s
}

func stateOf(b *route.BuilderStatus) string {
	switch {
	case b.Removed:
		return "removed"
	case b.Trouble == "":
		return "up"
	case strings.HasPrefix(b.Trouble, "suspended"):
		return "suspended"
	case strings.HasPrefix(b.Trouble, "overloaded"):
		return "overloaded"
	case b.Draining:
		return "drained"
	}
	return "down"
}

// reasonText is the reason, of a drained builder with what is left to wait for.
func (b *builderStatus) reasonText() string {
	if b.State != "drained" {
		return b.Reason
	}
	return b.Reason + "; " + workText(b.Busy, b.Fetching)
}

func newWaiting(q *route.Queued, ids buildIDs, now time.Time) waitingStatus {
	return waitingStatus{
		Build: ids.of(q), name: drvName(q.Name), ExpectedBuilder: q.Waiting.Builder, ExpectedStartSeconds: q.Waiting.Wait.Round(time.Second).Seconds(),
		Derivation: q.Name, Principal: q.Principal, Domain: q.Domain, System: q.System, Features: orNone(q.Features),
		Position: q.Waiting.Position(), WaitingSeconds: int64(now.Sub(q.Since) / time.Second), Reason: q.Waiting.String(),
	}
}

// drvName is the name in the path of a derivation.
func drvName(path string) string {
	if p, err := nix.ParseStorePath(path); err == nil && p.IsDerivation() {
		return p.DrvName()
	}
	return path
}

func (s *statusAnswer) print(page *page) {
	page.line("nixbastion %s, %s", s.Version, domainsText(s.Domains))
	if s.Policy != nil {
		s.Policy.print(page, time.Now())
	}
	if s.Audit != nil {
		s.Audit.print(page, time.Now())
	}
	if s.Totals != nil {
		s.Totals.print(page)
	}
	page.line("")
	page.heading("Builders")
	if len(s.Builders) == 0 {
		page.line("  there is none")
	}
	rows := make([][]string, len(s.Builders))
	for i := range s.Builders {
		rows[i] = s.Builders[i].row()
	}
	page.table(rows, 1)
	for i := range s.Builders {
		if b := &s.Builders[i]; b.Reason != "" {
			page.line("  %s is %s", b.Name, b.reasonText())
		}
	}
	s.printLoads(page)
	page.line("")
	page.heading("Queue: %s", queueText(s.QueueLength))
	for i := range s.Queue {
		s.Queue[i].print(page)
	}
	if more := s.QueueLength - len(s.Queue); more > 0 && s.Queue != nil {
		page.line("  and %d more", more)
	}
	s.printRefusals(page)
}

func (b *builderStatus) row() []string {
	row := []string{b.Name, b.State, fmt.Sprintf("%d/%d busy", b.Busy, b.MaxJobs), list(b.Systems), b.featuresText()}
	if len(b.Domains) > 0 {
		row = append(row, "for "+list(b.Domains))
	}
	return row
}

func (b *builderStatus) featuresText() string {
	if len(b.MandatoryFeatures) == 0 {
		return list(b.Features)
	}
	return strings.TrimPrefix(list(b.Features)+" mandatory "+list(b.MandatoryFeatures), "- ")
}

func (w *waitingStatus) print(page *page) {
	page.line("  %s for %s, %d s", w.Derivation, w.Principal, w.WaitingSeconds)
	page.line("    a '%s' with features {%s}, %s", w.System, strings.Join(w.Features, ", "), w.Reason)
}

func domainsText(domains []string) string {
	if len(domains) == 1 {
		return "domain " + domains[0]
	}
	return "domains " + strings.Join(domains, ", ")
}

func queueText(n int) string {
	switch n {
	case 0:
		return "no build waits"
	case 1:
		return "1 build waits"
	}
	return fmt.Sprintf("%d builds wait", n)
}
