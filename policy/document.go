package policy

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// document parses the bytes of a policy file into the one mapping that it is; nil
// after a mistake that leaves nothing to look at.
func (d *decoder) document(text []byte) *yaml.Node {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil {
		d.syntax(err)
		return nil
	}
	// A reader that stops after the first document would silently drop the rest.
	switch err := dec.Decode(&second); {
	case err == nil:
		d.mistake(&second, `everything belongs into one document: remove the line "---"`, "a second document begins here")
	case !errors.Is(err, io.EOF):
		d.syntax(err)
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

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?s:(.*))$`)

// syntax notes what the YAML parser says. It knows lines alone.
func (d *decoder) syntax(err error) {
	if errors.Is(err, io.EOF) {
		d.empty()
		return
	}
	at, text := &yaml.Node{Line: 1, Column: 1}, err.Error()
	if m := yamlError.FindStringSubmatch(text); m != nil {
		text = m[2]
		if line, err := strconv.Atoi(m[1]); err == nil {
			at.Line = line
		}
	}
	d.mistake(at, "look at indentation, quotes and brackets, here and in the lines around", "not YAML: %s",
		strings.ToValidUTF8(text, "?"))
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
