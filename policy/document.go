package policy

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// document parses the bytes of a policy file into the one mapping that it is; nil
// after a mistake that leaves nothing to look at.
func (d *decoder) document(text []byte) *yaml.Node {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil {
		d.syntax(text, err)
		return nil
	}
	// A reader that stops after the first document would silently drop the rest.
	switch err := dec.Decode(&second); {
	case err == nil:
		d.mistake(&second, `everything belongs into one document: remove the line "---"`, "a second document begins here")
	case !errors.Is(err, io.EOF):
		d.syntax(text, err)
	}
	if d.tricks(&doc) || len(doc.Content) != 1 {
		return nil // with aliases unresolved, more would be noise
	}
	root := doc.Content[0]
	if isNull(root) {
		d.empty()
		return nil
	}
	return root
}

func (d *decoder) empty() {
	hint := "config.example.yaml has every key with its meaning"
	if d.places.current != d.file {
		hint = "remove the file, or give it a name that does not end with " + includeExt
	}
	d.mistake(&yaml.Node{Line: 1, Column: 1}, hint, "the file has no settings")
}

var (
	yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?s:(.*))$`)
	// fromZero is what the library's parser finds, which counts lines from zero; its
	// scanner counts from one.
	fromZero = regexp.MustCompile(`^did not find expected (<|node content|'-' indicator|key|',' or ')|^found (undefined tag handle|duplicate %|incompatible YAML document)`)
	// anchorUnknown is said without a line.
	anchorUnknown = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// syntax notes what the YAML parser says. It knows lines alone, and not always.
func (d *decoder) syntax(text []byte, err error) {
	if errors.Is(err, io.EOF) {
		d.empty()
		return
	}
	says, line := err.Error(), 0
	if m := yamlError.FindStringSubmatch(says); m != nil {
		says = m[2]
		line, _ = strconv.Atoi(m[1]) // "" is 0
	}
	at := &yaml.Node{Line: line, Column: 1}
	if last, _ := lineOfOffset(text, len(bytes.TrimSuffix(text, []byte("\n")))); fromZero.MatchString(says) {
		at.Line = min(line+1, last)
	}
	if at.Line == 0 {
		at.Line, at.Column = lineOfOffset(text, offsetOf(text, says))
	}
	d.mistake(at, "look at indentation, quotes and brackets, here and in the lines around", "not YAML: %s",
		strings.ToValidUTF8(says, "?"))
}

// offsetOf finds what the parser complains about without a line; 0 is the first one.
func offsetOf(text []byte, says string) int {
	if m := anchorUnknown.FindStringSubmatch(says); m != nil {
		return max(bytes.Index(text, []byte("*"+m[1])), 0)
	}
	if !strings.Contains(says, "UTF-8") && !strings.HasPrefix(says, "control characters") {
		return 0
	}
	for at := 0; at < len(text); {
		r, size := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && size == 1 || unicode.IsControl(r) && !strings.ContainsRune("\t\n\r\u0085", r) {
			return at
		}
		at += size
	}
	return 0
}

func lineOfOffset(text []byte, offset int) (line, column int) {
	before := text[:offset]
	return 1 + bytes.Count(before, []byte("\n")), 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
}

// tricks refuses what makes a file say other things than it shows: anchors with
// aliases, which also let a small file grow without end, and tags. It reports
// whether there are aliases.
func (d *decoder) tricks(n *yaml.Node) (aliases bool) {
	if n.Kind == yaml.AliasNode {
		d.mistake(n, "write the value out", "aliases (*%s) are not allowed", clip(n.Value))
		return true // what it stands for is looked at in its own place
	}
	if n.Anchor != "" {
		d.mistake(n, "remove it, and write the value out where it is used", "anchors (&%s) are not allowed", clip(n.Anchor))
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.mistake(n, "remove it; text is written in quotes", "tags (%s) are not allowed", clip(n.Tag))
	}
	for _, child := range n.Content {
		aliases = d.tricks(child) || aliases
	}
	return aliases
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
