package policy

import (
	"hash"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// decoder takes one policy file apart. Its methods note mistakes and go on, so
// that one run finds them all; a value that they return after a mistake is the
// zero value and good for nothing but going on.
type decoder struct {
	file   string // as mistakes name it
	dir    string // what relative paths in the file start from
	places places
	root   *yaml.Node // with all that is included; nil until there is one
	// fullPaths are what names of files that do not begin with / stand for.
	fullPaths map[*yaml.Node]string
	disk      disk
	mistakes  Mistakes
	keys      keyring
	// authorities are the lines of each key that signs certificates, in the order
	// of the file, by the key's wire form.
	authorities map[string][]*ownedKey
	pol         *Policy
	// usualLoad is that of builders without an own one; it is read before them.
	usualLoad LoadLimits
	auditOff  bool
	hash      hash.Hash // of all that was read as the policy

	// schema has every key that mapping was ever asked for and whether the file
	// has it, as "builders.name".
	schema map[string]bool
	// shapes, when set, get what readers expect of a value; see schema.go.
	shapes *[]*shape

	// Where in the file things stand, for relations.
	domainsSeen, buildersSeen, principalsSeen names
	references                                []reference
	shared                                    []sharing
	jumps                                     []jumpReference
	needed                                    []needed
	limited                                   []limited
	signers                                   []signer
}

// setting is one key that a mapping may have.
type setting struct {
	key  string
	read func(*yaml.Node)
}

// mapping reads the settings of a mapping, in the order of the list, which is not
// that of the file. It returns the nodes of those that are there. The path says
// where in the schema we are: "builders.".
func (d *decoder) mapping(n *yaml.Node, path string, settings ...setting) map[string]*yaml.Node {
	if d.expects(n, yaml.MappingNode, func() *shape { return d.object(path, settings) }) {
		return map[string]*yaml.Node{}
	}
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, "keys with values, one \"key: value\" a line", "known keys: "+keyList(settings))
		return nil
	}
	values := d.values(n, settings)
	for _, s := range settings {
		value, there := values[s.key]
		d.schema[path+s.key] = d.schema[path+s.key] || there
		if there && d.hasValue(s.key, value) {
			s.read(value)
		}
	}
	return values
}

// values finds the values of the known keys of a mapping.
func (d *decoder) values(n *yaml.Node, settings []setting) map[string]*yaml.Node {
	values := map[string]*yaml.Node{}
	d.pairs(n, func(key, value *yaml.Node) {
		if !slices.ContainsFunc(settings, func(s setting) bool { return s.key == key.Value }) {
			d.mistake(key, didYouMean(key.Value, settings), "unknown key %s", quote(key.Value))
			return
		}
		values[key.Value] = value
	})
	return values
}

// pairs calls visit for each key and value of a mapping, once per key.
func (d *decoder) pairs(n *yaml.Node, visit func(key, value *yaml.Node)) {
	if d.expects(n, yaml.MappingNode, func() *shape { return d.anyKey(visit) }) {
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode {
			d.mistake(key, "a key is one word, followed by a colon", "expected a key, got %s", typeName(key))
			continue
		}
		if line, twice := lines[key.Value]; twice {
			d.mistake(key, "remove one of them", "key %s stands here for the second time; the first is on line %d", quote(key.Value), line)
			continue
		}
		lines[key.Value] = key.Line
		visit(key, n.Content[i+1])
	}
}

// hasValue refuses "key:" without anything: it is more often a line that got lost
// than a wish for the default.
func (d *decoder) hasValue(key string, n *yaml.Node) bool {
	if isNull(n) {
		d.mistake(n, "give a value, or remove the key to have the default", "key %q has no value", key)
		return false
	}
	return true
}

// require notes which of the keys that it always needs a mapping lacks.
func (d *decoder) require(n *yaml.Node, values map[string]*yaml.Node, what string, hints ...[2]string) {
	d.shapeRequires(n, hints)
	d.lacks(n, values, what, hints...)
}

// lacks is require for what is needed in some cases.
func (d *decoder) lacks(n *yaml.Node, values map[string]*yaml.Node, what string, hints ...[2]string) {
	if values == nil {
		return // not a mapping at all
	}
	for _, h := range hints {
		if key, hint := h[0], h[1]; values[key] == nil {
			d.mistake(n, hint, "%s has no %q", what, key)
		}
	}
}

// list calls visit for each item of a list.
func (d *decoder) list(n *yaml.Node, visit func(*yaml.Node)) {
	if d.expects(n, yaml.SequenceNode, func() *shape { return &shape{Type: "array", Items: d.shapeOf(visit)} }) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.wrongType(n, "a list", `write [a, b], or one "- a" a line`)
		return
	}
	for _, item := range n.Content {
		if isNull(item) {
			d.mistake(item, `remove the "-"`, "list item without a value")
			continue
		}
		visit(item)
	}
}

// texts reads a list of different texts; check may be nil.
func (d *decoder) texts(n *yaml.Node, check func(string) error) []string {
	if d.expects(n, yaml.SequenceNode, func() *shape { return &shape{Type: "array", Items: textShape(), UniqueItems: true} }) {
		return nil
	}
	var all []string
	d.list(n, func(item *yaml.Node) {
		text, ok := d.checkedText(item, check)
		switch {
		case !ok:
		case slices.Contains(all, text):
			d.mistake(item, "remove one of them", "%s stands in this list for the second time", quote(text))
		default:
			all = append(all, text)
		}
	})
	return all
}

// text reads text that is not empty.
func (d *decoder) text(n *yaml.Node) (string, bool) {
	if d.expects(n, yaml.ScalarNode, textShape) {
		return "", false
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		hint := "write one value, without a list or further keys"
		if n.Kind == yaml.ScalarNode {
			hint = "put it in quotes: " + quote(n.Value)
		}
		d.wrongType(n, "text", hint)
		return "", false
	}
	if strings.TrimSpace(n.Value) == "" {
		d.mistake(n, "give a value, or remove the key", "the text is empty")
		return "", false
	}
	return n.Value, true
}

// checkedText reads text and notes what check, which may be nil, has against it.
func (d *decoder) checkedText(n *yaml.Node, check func(string) error) (string, bool) {
	text, ok := d.text(n)
	if !ok || check == nil {
		return text, ok
	}
	if err := check(text); err != nil {
		d.mistake(n, hintOf(err), "%v", err)
		return "", false
	}
	return text, true
}

// truth reads true or false. YAML has more words for them, which were read
// differently over the years.
func (d *decoder) truth(n *yaml.Node) (value, ok bool) {
	if d.expects(n, yaml.ScalarNode, func() *shape { return &shape{Type: "boolean"} }) {
		return false, false
	}
	plain := n.Kind == yaml.ScalarNode && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	if !plain || n.Value != "true" && n.Value != "false" {
		d.wrongType(n, "true or false", "write one of these words, without quotes")
		return false, false
	}
	return n.Value == "true", true
}

// choice reads one of several words.
func choice[T any](d *decoder, n *yaml.Node, words map[string]T) (value T, ok bool) {
	if d.expects(n, yaml.ScalarNode, func() *shape { return &shape{Enum: slices.Sorted(maps.Keys(words))} }) {
		return value, false
	}
	text, ok := d.text(n)
	if !ok {
		return value, false
	}
	value, ok = words[text]
	if !ok {
		known := slices.Sorted(maps.Keys(words))
		d.mistake(n, "known words: "+strings.Join(known, ", "), "unknown word %s", quote(text))
	}
	return value, ok
}

// off reads the word off, which may stand in the place of settings.
func (d *decoder) off(n *yaml.Node, settings, hint string) bool {
	if d.expects(n, yaml.ScalarNode, func() *shape { return &shape{Enum: []string{"off"}} }) {
		return false
	}
	if n.ShortTag() != "!!str" || n.Value != "off" {
		d.wrongType(n, settings+", or the word off", hint)
		return false
	}
	return true
}

var (
	decimal       = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)
	decimalPoint  = regexp.MustCompile(`^(0|[1-9][0-9]*)(\.[0-9]+)?$`)
	octalLooking  = regexp.MustCompile(`^[-+]?0[0-9_]+(\.[0-9]*)?$`)
	numberLooking = regexp.MustCompile(`^[-+]?(0[xob])?[0-9a-fA-F_.]+$`)
)

// count reads a whole number from least up to most.
func (d *decoder) count(n *yaml.Node, least, most int) (int, bool) {
	if d.expects(n, yaml.ScalarNode, func() *shape { return numberShape("integer", float64(least), float64(most)) }) {
		return 0, false
	}
	if !d.number(n, decimal, "a whole number") {
		return 0, false
	}
	value, err := strconv.Atoi(n.Value)
	if err != nil || value < least || value > most {
		d.mistake(n, "choose a number between them", "%s is not from %d to %d", clip(n.Value), least, most)
		return 0, false
	}
	return value, true
}

// maxSpeed bounds speeds, so that sums and quotients of them stay numbers.
const maxSpeed = 1_000_000

// speed reads a number above zero, which may have a decimal point.
func (d *decoder) speed(n *yaml.Node) (float64, bool) {
	return d.measure(n, 0.001, maxSpeed, "1 is the usual speed, 2 is twice as fast")
}

// measure reads a number from least up to most, which may have a decimal point.
func (d *decoder) measure(n *yaml.Node, least, most float64, hint string) (float64, bool) {
	if d.expects(n, yaml.ScalarNode, func() *shape { return numberShape("number", least, most) }) {
		return 0, false
	}
	if !d.number(n, decimalPoint, "a number") {
		return 0, false
	}
	value, err := strconv.ParseFloat(n.Value, 64)
	if err != nil || math.IsNaN(value) || value < least || value > most {
		d.mistake(n, hint, "%s is not from %s to %s", clip(n.Value), speedText(least), speedText(most))
		return 0, false
	}
	return value, true
}

// number checks how a number is written. YAML reads 010 as eight, 1_0 as ten.
func (d *decoder) number(n *yaml.Node, grammar *regexp.Regexp, what string) bool {
	plain := n.Kind == yaml.ScalarNode && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	switch {
	case plain && grammar.MatchString(n.Value):
		return true
	case plain && octalLooking.MatchString(n.Value):
		digits := strings.TrimLeft(strings.TrimLeft(n.Value, "+-"), "0_")
		if digits == "" || digits[0] == '.' {
			digits = "0" + digits
		}
		d.mistake(n, "write "+digits+" without the zero",
			"%s begins with a zero, which YAML reads as an octal number", clip(n.Value))
	case plain && numberLooking.MatchString(n.Value):
		d.mistake(n, "write it in decimal digits alone, as 12", "expected %s, got %s", what, clip(n.Value))
	default:
		d.wrongType(n, what, "write it in decimal digits without quotes, as 12")
	}
	return false
}

func (d *decoder) wrongType(n *yaml.Node, expected, hint string) {
	d.mistake(n, hint, "expected %s, got %s", expected, typeName(n))
}

// typeName says what a node is, in words for people.
func typeName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys with values"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "the truth value " + clip(n.Value)
	case "!!int", "!!float":
		return "the number " + clip(n.Value)
	case "!!timestamp":
		return "the date " + clip(n.Value)
	}
	return "the text " + quote(n.Value)
}

func keyList(settings []setting) string {
	keys := make([]string, len(settings))
	for i, s := range settings {
		keys[i] = s.key
	}
	return strings.Join(keys, ", ")
}
