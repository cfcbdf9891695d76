package policy

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// onOneLine says that a value has one place.
func (p *printer) onOneLine(n *yaml.Node) bool {
	return !slices.ContainsFunc(n.Content, func(child *yaml.Node) bool { return p.place(child) != p.place(n) || !p.onOneLine(child) })
}

// plain copies a node without its style and comments, with full paths.
func (p *printer) plain(n *yaml.Node) *yaml.Node {
	c := &yaml.Node{Kind: n.Kind, Tag: n.ShortTag(), Value: n.Value, Style: yaml.FlowStyle}
	if full, ok := p.fullPaths[n]; ok {
		c.Value = full
	}
	if n.Kind == yaml.ScalarNode {
		c.Style = 0
		if strings.ContainsFunc(c.Value, unicode.IsControl) || c.Value == "<<" { // which the library leaves bare
			c.Style = yaml.DoubleQuotedStyle
		}
	}
	for _, child := range n.Content {
		c.Content = append(c.Content, p.plain(child))
	}
	return c
}

// place says where a node is.
func (p *printer) place(n *yaml.Node) string {
	file := p.places.file(n)
	if full, err := filepath.Abs(file); err == nil {
		file = full
	}
	if rel, err := filepath.Rel(p.dir, file); err == nil && !strings.HasPrefix(rel, "..") {
		file = rel
	}
	return fmt.Sprintf("%s:%d", unquoted(file), n.Line)
}

// nodeText writes a node on one line.
func nodeText(n *yaml.Node) string {
	text, err := yaml.Marshal(n)
	if err != nil { // it was read from YAML
		panic(err)
	}
	return strings.TrimSuffix(string(text), "\n")
}

// valueText writes the value of a field on one line.
func valueText(value any) string {
	if text, plain := value.(word); plain {
		return string(text)
	}
	n := &yaml.Node{}
	if err := n.Encode(value); err != nil { // a kind that fields cannot have
		panic(err)
	}
	if n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle
	}
	return nodeText(n)
}

func (p *printer) line(depth int, text, from string) {
	indent := strings.Repeat("  ", depth)
	if p.dash {
		indent = strings.Repeat("  ", depth-1) + "- "
		p.dash = false
	}
	p.lines = append(p.lines, printedLine{indent + text, from})
}

func (p *printer) comment(depth int, text string) {
	p.lines = append(p.lines, printedLine{strings.Repeat("  ", depth) + "# " + unquoted(text), ""})
}

// fromColumn is where it is said what values are from, where they are not longer.
const fromColumn = 48

func (p *printer) text() string {
	var b strings.Builder
	for _, l := range p.lines {
		b.WriteString(l.text)
		if l.from != "" {
			b.WriteString(strings.Repeat(" ", max(fromColumn-utf8.RuneCountInString(l.text), 2)) + "# " + l.from)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
