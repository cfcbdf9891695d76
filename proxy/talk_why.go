package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/policy"
	"nixbastion/route"
)

const whyUsage = "say why DERIVATION, or why SYSTEM [FEATURE ...]"

// maxWhyFeatures is far above what a derivation requires.
const maxWhyFeatures = 64

// wordGrammar is that of systems and features.
var wordGrammar = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+:/-]{0,127}$`)

// whyAnswer says where a build would go now. It takes nothing.
type whyAnswer struct {
	// Derivation is what was asked for; empty if a system was.
	Derivation string `json:"derivation,omitempty"`
	// Rankings has one entry per domain that was asked for.
	Rankings []ranking `json:"rankings"`
}

// ranking is the decision that the router would make for a domain.
type ranking struct {
	Domain   string   `json:"domain"`
	System   string   `json:"system"`
	Features []string `json:"features"`
	// Valid says that the outputs are there already: a build would be answered
	// without a builder.
	Valid bool `json:"outputs_valid"`
	// Needs are amounts of its builder's resources, Alone says that nothing else may
	// be built there meanwhile, and Wishes are those features without which it can be.
	Needs  map[string]int64 `json:"needs,omitempty"`
	Alone  bool             `json:"alone,omitempty"`
	Wishes []string         `json:"wishes,omitempty"`
	// Note says for people what the ranking does not count; else empty.
	Note string `json:"note,omitempty"`
	// Summary is the outcome for people.
	Summary string `json:"summary"`
	// Builder is where the build would go now; empty if nowhere.
	Builder string `json:"builder"`
	// Limit says for people that the principal has as many builds as it may.
	Limit string `json:"limit,omitempty"`
	// EstimateSeconds is how long the build is thought to take at speed 1, and
	// EstimateBuilds from how many builds that is known; 0 for a guess.
	EstimateSeconds float64 `json:"estimate_seconds"`
	EstimateBuilds  int     `json:"estimate_builds"`
	// Ahead is about how many builds wait before it.
	Ahead int `json:"ahead"`
	// Builders are all of the domain, in the order of the ranking.
	Builders []rankedBuilder `json:"builders"`

	text string
}

// rankedBuilder is one builder in a ranking.
type rankedBuilder struct {
	Name string `json:"name"`
	// State is "free", "busy", "overloaded" (and waited for), "down", "excluded" or
	// "unfit".
	State string `json:"state"`
	// Eligible says that it could run the build, now or later.
	Eligible bool `json:"eligible"`
	// Reason is what is in the way, for people; empty for free and busy ones.
	Reason string `json:"reason,omitempty"`
	// The rest is there where State is "free" or "busy".
	Load *builderLoad `json:"load,omitempty"`
}

// builderLoad is what a builder's rank is made of.
type builderLoad struct {
	Busy    int     `json:"busy"`
	MaxJobs int     `json:"max_jobs"`
	Speed   float64 `json:"speed"`
	// MissingBytes is what would have to be brought there.
	MissingBytes int64 `json:"missing_bytes"`
	// When the build would be done there, by estimate, and what that is made of.
	FinishSeconds   float64 `json:"finish_seconds"`
	WaitSeconds     float64 `json:"wait_seconds"`
	WakeSeconds     float64 `json:"wake_seconds"`
	TransferSeconds float64 `json:"transfer_seconds"`
	BuildSeconds    float64 `json:"build_seconds"`
	CrowdingSeconds float64 `json:"crowding_seconds"`
	PenaltySeconds  float64 `json:"penalty_seconds"`
}

func newBuilderLoad(c *route.Candidate) *builderLoad {
	t := &c.Terms
	return &builderLoad{
		Busy: c.Busy, MaxJobs: c.MaxJobs, Speed: c.Speed, MissingBytes: c.Missing,
		FinishSeconds: t.Finish.Seconds(), WaitSeconds: t.Wait.Seconds(), WakeSeconds: t.Wake.Seconds(),
		TransferSeconds: t.Transfer.Seconds(), BuildSeconds: t.Build.Seconds(), CrowdingSeconds: t.Crowding.Seconds(),
		PenaltySeconds: t.Penalty.Seconds(),
	}
}

func (p *Proxy) why(ctx context.Context, a *asker, args []string) (answer, error) {
	if len(args) == 0 {
		return nil, usage(whyUsage)
	}
	if err := a.mayAsk("where builds go"); err != nil {
		return nil, err
	}
	if strings.HasPrefix(args[0], "/") || strings.HasSuffix(args[0], ".drv") {
		return p.whyDerivation(ctx, a, args)
	}
	return p.whySystem(a, args)
}

// principals are those in whose name the asker's question is answered: a
// client's own, or nobody in particular of each domain.
func (p *Proxy) principals(a *asker) []*policy.Principal {
	if a.client != nil {
		return []*policy.Principal{a.access.Principal}
	}
	var all []*policy.Principal
	for _, d := range p.policy.Current().Domains {
		all = append(all, &policy.Principal{Domain: d.Name})
	}
	return all
}

// checkRequired refuses what is no system or feature.
func checkRequired(system string, features []string) error {
	for _, word := range append([]string{system}, features...) {
		if !wordGrammar.MatchString(word) {
			return fmt.Errorf("%s is not the name of a system or feature", quoted(word))
		}
	}
	if len(features) > maxWhyFeatures {
		return fmt.Errorf("more than %d features", maxWhyFeatures)
	}
	return nil
}

func (p *Proxy) whySystem(a *asker, args []string) (answer, error) {
	var features []string
	for _, arg := range args[1:] {
		features = append(features, strings.FieldsFunc(arg, func(r rune) bool { return r == ',' })...)
	}
	if err := checkRequired(args[0], features); err != nil {
		return nil, usage("%v; %s", err, whyUsage)
	}
	w := &whyAnswer{}
	for _, principal := range p.principals(a) {
		x := explainer{policy: p.policy.Current(), router: p.router}
		r, err := x.rank(principal, &Question{System: args[0], Features: features})
		if err != nil {
			return nil, err
		}
		w.Rankings = append(w.Rankings, *r)
	}
	return w, nil
}

func (p *Proxy) whyDerivation(ctx context.Context, a *asker, args []string) (answer, error) {
	if len(args) > 1 {
		return nil, usage(whyUsage)
	}
	path, err := nix.ParseStorePath(args[0])
	if err != nil {
		path, err = nix.ParseStorePathBase(args[0])
	}
	if err != nil || !path.IsDerivation() {
		return nil, usage("%s is not the path of a derivation; %s", quoted(args[0]), whyUsage)
	}
	w := &whyAnswer{Derivation: path.String()}
	for _, principal := range p.principals(a) {
		r, err := p.rankDerivation(ctx, principal, path)
		switch {
		case errors.Is(err, nix.ErrNotFound):
		case err != nil:
			return nil, err
		default:
			w.Rankings = append(w.Rankings, *r)
		}
	}
	if w.Rankings == nil {
		return nil, nix.Refuse("derivation %s is not in the store here; most clients send what it needs and not the derivation itself, so say why SYSTEM FEATURE ... instead", path)
	}
	return w, nil
}

// rankDerivation ranks the builders of a principal's domain for a derivation in
// the cache, as a build of it would.
func (p *Proxy) rankDerivation(ctx context.Context, principal *policy.Principal, path nix.StorePath) (*ranking, error) {
	s := p.newSession(principal, p.log)
	defer s.close()
	drv, err := s.derivation(ctx, path)
	if err != nil {
		return nil, err
	}
	return s.rank(ctx, path, drv)
}

// rank ranks the builders of the session's domain for a derivation.
func (s *session) rank(ctx context.Context, path nix.StorePath, drv *nix.Derivation) (*ranking, error) {
	o, note, err := s.orderOf(ctx, path, drv)
	if err != nil {
		return nil, err
	}
	r := newRanking(s.builds.router, s.builds.requestOf(o))
	r.Note = note
	r.Valid = s.knownOutputs(&drv.BasicDerivation, nix.BuildNormal) != nil
	return r, nil
}

// orderOf makes an order of a derivation, without its inputs if some are not
// there; note says so. Nothing is fetched for it.
func (s *session) orderOf(ctx context.Context, path nix.StorePath, drv *nix.Derivation) (o *order, note string, err error) {
	basic, failure := s.flatten(ctx, path, drv, nil)
	if failure != nil {
		uncounted := drv.BasicDerivation
		uncounted.InputSrcs = nil
		basic, note = &uncounted, "not all inputs are here, so what they weigh is not counted"
	}
	o, err = s.order(path, basic, nix.BuildNormal)
	return o, note, err
}

var stateNames = map[route.State]string{
	route.Free: "free", route.Busy: "busy", route.Overloaded: "overloaded", route.Down: "down", route.Excluded: "excluded", route.Unfit: "unfit",
}

// newRanking is what a router would decide about a request now.
func newRanking(router *route.Router, req route.Request) *ranking {
	d := router.Explain(req)
	text := d.String()
	summary, _, _ := strings.Cut(text, "\n")
	r := &ranking{
		Domain: req.Domain, System: d.System, Features: orNone(slices.Clone(d.Features)), Summary: summary, Builder: d.Builder, Limit: d.Limit,
		Needs: req.Needs, Alone: req.Alone, Wishes: wishesOf(&req),
		EstimateSeconds: d.Estimate.Seconds(), EstimateBuilds: d.Builds, Ahead: d.Ahead,
		Builders: make([]rankedBuilder, len(d.Candidates)), text: text,
	}
	for i := range d.Candidates {
		r.Builders[i] = newRankedBuilder(&d.Candidates[i])
	}
	return r
}

func newRankedBuilder(c *route.Candidate) rankedBuilder {
	b := rankedBuilder{Name: c.Name, State: stateNames[c.State], Eligible: c.State <= route.Down, Reason: c.Reason}
	if c.State <= route.Busy {
		b.Load = newBuilderLoad(c)
	}
	return b
}

func wishesOf(req *route.Request) []string {
	return slices.DeleteFunc(slices.Clone(req.Features), func(f string) bool { return !slices.Contains(req.Soft, f) })
}

func (w *whyAnswer) print(page *page) {
	if w.Derivation != "" {
		page.line("%s", w.Derivation)
	}
	for i := range w.Rankings {
		if i > 0 {
			page.line("")
		}
		if len(w.Rankings) > 1 {
			page.line("Domain %s", w.Rankings[i].Domain)
		}
		w.Rankings[i].print(page)
	}
}

func (r *ranking) print(page *page) {
	if r.Valid {
		page.line("its outputs are there already: a build is answered without a builder")
	}
	page.line("%s", r.text)
	for _, name := range slices.Sorted(maps.Keys(r.Needs)) {
		page.line("it needs %d %s of its builder", r.Needs[name], name)
	}
	if r.Alone {
		page.line("it wants its builder alone")
	}
	if len(r.Wishes) > 0 {
		page.line("it can do without %s", strings.Join(r.Wishes, ", "))
	}
	if r.Note != "" {
		page.line("%s", r.Note)
	}
}
