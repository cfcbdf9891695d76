package proxy

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"nixbastion/policy"
)

// maxMistakesShown is how many mistakes of a refused policy status lists.
const maxMistakesShown = 5

// reloads remember how the last reload went. The zero value is ready.
type reloads struct {
	// one lets one reload at a time take effect as a whole.
	one sync.Mutex
	// started is the policy of the start, of which some keys count until the end.
	started *policy.Policy
	// begins is that of the options.
	begins func(by string) (over func(error))

	mu   sync.Mutex // guards what follows
	last *reloadStatus
}

// reloadStatus is how the last attempt to load the policy went, for the admin.
type reloadStatus struct {
	Time time.Time `json:"time"`
	// By says what asked for it: "command", "SIGHUP", "watch", or the process that was
	// here before or has come after.
	By string `json:"by"`
	// Loaded is false if the policy was refused; the old one is in force then.
	Loaded bool `json:"loaded"`
	// Mistakes are the first of those for which it was refused, each with its place in
	// the file, and MoreMistakes says how many more there are.
	Mistakes     []string `json:"mistakes,omitempty"`
	MoreMistakes int      `json:"more_mistakes,omitempty"`
}

// policyStatus says which policy is in force.
type policyStatus struct {
	// NeedsRestart are keys whose change counts only when the proxy starts again.
	NeedsRestart []string `json:"needs_restart"`
	// LastReload is missing before the first one.
	LastReload *reloadStatus `json:"last_reload,omitempty"`
}

// Reloaded says what a reload came to, besides the new policy.
type Reloaded struct {
	Reviewed
	// NeedsRestart are the keys that differ from the policy of the start and count only
	// when the proxy starts again.
	NeedsRestart []string
}

// Reload takes the policy file anew; by says for the log what asked for that. A file
// with mistakes is refused as a whole, and the old policy stays: the error is a
// [*policy.Mistakes] then. When it returns nil the new policy is in force for whoever
// comes, and those who must not stay by it were told to go.
func (p *Proxy) Reload(by string) (result Reloaded, err error) {
	p.reloads.one.Lock()
	defer p.reloads.one.Unlock()
	if p.reloads.begins != nil {
		over := p.reloads.begins(by)
		defer func() { over(err) }()
	}
	before := p.policy.Current()
	err = p.policy.ReloadAfter(p.signing.prepare)
	p.reloads.note(by, err)
	p.reloaded(err)
	p.metrics.Reload(err)
	if err != nil {
		p.log.Error("policy refused; the old one stays", "by", by, "error", err.Error())
		return Reloaded{}, err
	}
	return p.takeEffect(before, by), nil
}

// takeEffect brings everything to what the policy says that is in force now.
func (p *Proxy) takeEffect(before *policy.Policy, by string) Reloaded {
	pol := p.policy.Current()
	result := Reloaded{Reviewed: p.front.Review(), NeedsRestart: p.reloads.started.NeedsRestart(pol)}
	p.endLingering(before, pol)
	p.signing.begin(p.builds.fetchCtx)
	p.apply(pol)
	for _, b := range pol.Builders { // the admin may have mended it
		p.router.Pardon(b.Name)
	}
	p.lookAtBuilders()
	p.warnOfHostCertificate()
	p.glances.forget()
	p.log.Info("policy loaded", "by", by, "dismissed", result.Dismissed, "finishing", result.Finishing, "jumps_ended", result.Jumps)
	if len(result.NeedsRestart) > 0 {
		p.log.Warn("some changes count after a restart only", "keys", result.NeedsRestart)
	}
	return result
}

// String says it to the admin, in lines.
func (r Reloaded) String() string {
	text := "policy loaded"
	if r.Dismissed > 0 {
		text += fmt.Sprintf("; %s ended, as the new policy forbids them", policy.CountOf(r.Dismissed, "connection"))
	}
	if r.Finishing > 0 {
		text += fmt.Sprintf("; %s will end when their builds are done, as the new policy forbids them", policy.CountOf(r.Finishing, "connection"))
	}
	if r.Jumps > 0 {
		text += fmt.Sprintf("; %s ended", policy.CountOf(r.Jumps, "jump"))
	}
	text += "\n"
	if len(r.NeedsRestart) > 0 {
		text += restartText(r.NeedsRestart) + "\n"
	}
	return text
}

func restartText(keys []string) string {
	return "changed since the start, and in force after a restart only: " + strings.Join(keys, ", ")
}

// note remembers an attempt.
func (r *reloads) note(by string, err error) {
	last := &reloadStatus{Time: time.Now().UTC().Truncate(time.Second), By: by, Loaded: err == nil}
	var mistakes *policy.Mistakes
	switch {
	case errors.As(err, &mistakes):
		shown := mistakes.List[:min(len(mistakes.List), maxMistakesShown)]
		for _, m := range shown {
			last.Mistakes = append(last.Mistakes, m.String())
		}
		last.MoreMistakes = len(mistakes.List) + mistakes.More - len(shown)
	case err != nil:
		last.Mistakes = []string{err.Error()}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = last
}

// status is for the admin. Of a list that is changed nothing is shown twice.
func (r *reloads) status(pol *policy.Policy) *policyStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &policyStatus{NeedsRestart: orNone(r.started.NeedsRestart(pol)), LastReload: r.last}
}

// print writes what needs the admin's attention, and when the policy was loaded.
func (s *policyStatus) print(page *page, now time.Time) {
	if last := s.LastReload; last != nil {
		last.print(page, now)
	}
	if len(s.NeedsRestart) > 0 {
		page.line("Policy: %s", restartText(s.NeedsRestart))
	}
}

func (r *reloadStatus) print(page *page, now time.Time) {
	when := fmt.Sprintf("%s ago (%s, by %s)", now.Sub(r.Time).Truncate(time.Second), r.Time.Format("15:04:05Z"), r.By)
	if r.Loaded {
		page.line("Policy: loaded %s", when)
		return
	}
	page.line("Policy: the changed file was REFUSED %s; the one before it stays in force", when)
	for _, m := range r.Mistakes {
		for line := range strings.Lines(m) {
			page.line("  %s", strings.TrimSuffix(line, "\n"))
		}
	}
	if r.MoreMistakes > 0 {
		page.line("  and %d more: nixbastion check FILE lists them", r.MoreMistakes)
	}
}
