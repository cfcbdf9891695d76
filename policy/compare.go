package policy

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Area is what a change of a policy is about. The most important one is the least.
type Area string

// The areas, in the order of their importance.
const (
	AreaAccess     Area = "access"     // who may do what
	AreaTrust      Area = "trust"      // what is believed, signed and shown, and what is run
	AreaBuilders   Area = "builders"   // what can be built where
	AreaLimits     Area = "limits"     // how much
	AreaScheduling Area = "scheduling" // when and where first
	AreaCache      Area = "cache"      // the store on disk
	AreaServer     Area = "server"     // the proxy itself
)

// areas are all of them with their titles, in their order.
var areas = []struct {
	area  Area
	title string
}{
	{AreaAccess, "Who may do what"}, {AreaTrust, "What is believed, signed and shown"}, {AreaBuilders, "What is built where"},
	{AreaLimits, "Limits"}, {AreaScheduling, "Scheduling"}, {AreaCache, "The store"}, {AreaServer, "The proxy itself"},
}

// Effect says whether somebody gains or loses something by a change.
type Effect string

// The effects, in the order in which changes of an area stand: what somebody gains is
// what an attacker would.
const (
	Gains   Effect = "gains"
	Changes Effect = "changes"
	Loses   Effect = "loses"
)

var effects = []struct {
	effect Effect
	sign   string
}{{Gains, "+"}, {Changes, "~"}, {Loses, "-"}}

// Change is one thing that another policy changes.
type Change struct {
	Area   Area   `json:"area"`
	Effect Effect `json:"effect"`
	// Subject is whom or what it is about, as "principal anna".
	Subject string `json:"subject"`
	// Text is a sentence about the subject, of which it has no subject.
	Text string `json:"text"`
}

// Difference is what another policy changes; without changes the two are the same.
type Difference struct {
	// Changes are sorted by their importance.
	Changes []Change `json:"changes"`
	// Restart are the keys of those that count only when the proxy starts again.
	Restart []string `json:"restart"`
}

// Compare says what changes when next takes the place of p: who gains and who loses
// what. Files that builders are reached with (identity_file, known_hosts) are compared by
// their names alone.
func (p *Policy) Compare(next *Policy) Difference {
	c := &comparison{old: p, next: next, oldOwners: p.owners(), owners: next.owners()}
	c.principals()
	c.revocations()
	c.domains()
	c.trustedKeys()
	c.hostCertificate()
	c.builders()
	c.rules()
	c.fields("", "", p.fields(), next.fields())
	slices.SortStableFunc(c.changes, func(a, b Change) int { return a.weight() - b.weight() })
	return Difference{Changes: append([]Change{}, c.changes...), Restart: append([]string{}, p.NeedsRestart(next)...)}
}

// weight orders changes.
func (c Change) weight() int {
	area, effect := 0, 0
	for i, a := range areas {
		if a.area == c.Area {
			area = i
		}
	}
	for i, e := range effects {
		if e.effect == c.Effect {
			effect = i
		}
	}
	return area*len(effects) + effect
}

// Same reports whether nothing changes.
func (d *Difference) Same() bool { return len(d.Changes) == 0 }

// Write says it in words: + is what somebody gains, - what somebody loses, ~ what is
// otherwise than it was. The error is that of w.
func (d *Difference) Write(w io.Writer) error {
	var b strings.Builder
	if d.Same() {
		b.WriteString("Nothing changes.\n")
	}
	for _, a := range areas {
		title := a.title + "\n"
		for _, c := range d.Changes {
			if c.Area == a.area {
				b.WriteString(title + "  " + c.sign() + " " + c.Subject + " " + c.Text + "\n")
				title = ""
			}
		}
	}
	if len(d.Restart) > 0 {
		b.WriteString("\nCounts only after a restart: " + strings.Join(d.Restart, ", ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (c Change) sign() string {
	for _, e := range effects {
		if e.effect == c.Effect {
			return e.sign
		}
	}
	return "~"
}

// comparison collects changes.
type comparison struct {
	old, next *Policy
	changes   []Change
	// oldOwners and owners are those of keys.
	oldOwners, owners map[string]string
}

func (c *comparison) add(area Area, effect Effect, subject, format string, args ...any) {
	c.changes = append(c.changes, Change{area, effect, subject, fmt.Sprintf(format, args...)})
}

// rule is one of a list, by all that it has. The text of two may be the same.
type rule struct{ key, text string }

// rules compares lists of rules by what they mean.
func (c *comparison) rules() {
	needs := func(p *Policy) (all []rule) {
		for i := range p.Scheduling.Needs {
			need := &p.Scheduling.Needs[i]
			all = append(all, rule{fmt.Sprintf("%#v", *need), need.meaning()})
		}
		return all
	}
	limits := func(p *Policy) (all []rule) {
		for i := range p.BuildLimits {
			limit := &p.BuildLimits[i]
			all = append(all, rule{fmt.Sprintf("%#v", *limit), limit.meaning()})
		}
		return all
	}
	c.sentences(AreaScheduling, needs(c.old), needs(c.next), false)
	c.sentences(AreaLimits, limits(c.old), limits(c.next), true)
}

// sentences compares sentences about builds.
func (c *comparison) sentences(area Area, old, next []rule, ordered bool) {
	gone, new := without(old, next), without(next, old)
	for _, r := range new {
		c.add(area, Changes, "builds", "%s: a new rule", r.text)
	}
	for _, r := range gone {
		c.add(area, Changes, "builds", "no longer %s: the rule is gone", r.text)
	}
	if ordered && len(gone)+len(new) == 0 && !slices.Equal(old, next) {
		texts := make([]string, len(next))
		for i, r := range next {
			texts[i] = r.text
		}
		c.add(area, Changes, "build_limits", "has its rules in another order, and for each limit the first counts: %s", strings.Join(texts, "; then "))
	}
}

// without returns the items of a list that another one lacks. Of several equal ones as
// many are there as the other one has fewer.
func without[T comparable](list, other []T) []T {
	have := map[T]int{}
	for _, item := range other {
		have[item]++
	}
	var left []T
	for _, item := range list {
		if have[item]--; have[item] < 0 {
			left = append(left, item)
		}
	}
	return left
}
