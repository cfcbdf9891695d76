package route

import (
	"fmt"
	"strconv"
	"strings"
)

// State says how a builder stands to a request, from best to worst.
type State uint8

const (
	// Free builders match, are up and have a slot.
	Free State = iota
	// Busy builders match and are up.
	Busy
	// Down builders match but are down or suspended.
	Down
	// Excluded builders match but the request must not go there again.
	Excluded
	// Unfit builders can never run the request.
	Unfit
)

// Candidate is a builder of the request's domain in a ranking.
type Candidate struct {
	Name  string
	State State
	// Reason says for people what is in the way; empty where State is Free or Busy.
	Reason string

	// The rest is set where State is Free or Busy.

	// Busy of MaxJobs slots are taken. There may be more taken than there are,
	// after a reload that took slots away.
	Busy    int
	MaxJobs int
	// Speed is the speed factor times the speed of the system; more than 0.
	Speed float64
	// Missing is what the builder is not known to hold of the inputs, in bytes.
	Missing int64
	// Score is the rule's; less is better.
	Score float64
}

// reason says for people how the builder stands, without its name.
func (c *Candidate) reason() string {
	if c.Reason != "" {
		return c.Reason
	}
	return fmt.Sprintf("%d/%d busy", c.Busy, c.MaxJobs)
}

// Decision is a ranking with its reasons.
type Decision struct {
	// System and Features are what was required.
	System   string
	Features []string
	// Builder is where the request goes, empty if it cannot be placed now.
	Builder string
	// Limit says for people that the principal holds as many places as it may;
	// else empty.
	Limit string
	// Candidates are all builders of the domain: those that are up and match as
	// the rule ranked them, then those that are down, excluded and unfit, by name.
	Candidates []Candidate
}

// String says the decision for people, one line for each builder.
func (d Decision) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s: %s", requirement(d.System, d.Features), d.outcome())
	for i := range d.Candidates {
		fmt.Fprintf(&s, "\n  %s: %s", d.Candidates[i].Name, d.Candidates[i].detail())
	}
	return s.String()
}

func (d *Decision) outcome() string {
	switch {
	case d.Builder != "":
		return "goes to " + d.Builder
	case len(d.Candidates) == 0:
		return "there is no builder"
	case d.Candidates[0].State > Down:
		return "no builder can run it"
	case d.Candidates[0].State == Down:
		return "every builder that could run it is down"
	case d.Limit != "":
		return "waits, " + d.Limit
	}
	return "waits for " + d.Candidates[0].Name
}

// detail is the reason, with what the ranking is made of.
func (c *Candidate) detail() string {
	if c.State > Busy {
		return c.reason()
	}
	return fmt.Sprintf("%s, speed %s, score %.3g, %s missing", c.reason(), number(c.Speed), c.Score, size(c.Missing))
}

// requirement names a kind of builder the way Nix does.
func requirement(system string, features []string) string {
	return fmt.Sprintf("a '%s' with features {%s}", system, strings.Join(features, ", "))
}

func number(f float64) string { return strconv.FormatFloat(f, 'g', 4, 64) }

// size writes a number of bytes as Nix does, in MiB.
func size(bytes int64) string {
	if bytes == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%.2f MiB", float64(bytes)/(1<<20))
}
