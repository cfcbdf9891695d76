package policy

import (
	"regexp"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// durationGrammar is Go's without signs, and without units that nobody waits in.
var durationGrammar = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`)

const durationHint = "write numbers with ms, s, m or h, as 90s or 1h30m"

// duration reads a time from least up to most.
func (d *decoder) duration(n *yaml.Node, least, most time.Duration) (time.Duration, bool) {
	if d.expects(n, yaml.ScalarNode, func() *shape { return durationShape(least <= 0) }) {
		return 0, false
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" && n.Value != "0" {
		d.wrongType(n, "a duration with its unit", durationHint)
		return 0, false
	}
	value, err := parseDuration(n.Value)
	if err == nil && (value < least || value > most) {
		err = refuse("choose a duration between them", "%s is not from %s to %s", clip(n.Value), durationText(least), durationText(most))
	}
	if err != nil {
		d.mistake(n, hintOf(err), "%v", err)
		return 0, false
	}
	return value, true
}

func durationShape(orZero bool) *shape {
	pattern := durationGrammar.String()
	if orZero {
		pattern = "^0$|" + pattern // in quotes
	}
	return unitShape(pattern, orZero)
}

func (d *decoder) durationInto(to *time.Duration, n *yaml.Node, least, most time.Duration) {
	if value, ok := d.duration(n, least, most); ok {
		*to = value
	}
}

func parseDuration(text string) (time.Duration, error) {
	if text == "0" {
		return 0, nil
	}
	if !durationGrammar.MatchString(text) {
		return 0, refuse(durationHint, "%s is not a duration", quote(text))
	}
	value, err := time.ParseDuration(text)
	if err != nil { // the grammar holds, so it is out of range
		return 0, refuse("choose a shorter one", "duration %s is too long", quote(text))
	}
	return value, nil
}

// durationText writes a duration as the policy file has it, without parts that are
// zero.
func durationText(value time.Duration) string {
	if value == 0 {
		return "0"
	}
	text := value.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
