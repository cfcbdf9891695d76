package policy

import (
	"io"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Print loads a policy file and writes the policy in effect as YAML: with all that is
// included, with defaults, and where each value is from. What it writes loads again
// to an equal policy. Errors are those of [Load] and of w.
func Print(file string, w io.Writer) error {
	text, err := readMain(file, realDisk{})
	if err != nil {
		return err
	}
	d := newDecoder(file, realDisk{})
	d.decode(text)
	if err := d.mistakes.sorted(file); err != nil {
		return err
	}
	_, err = io.WriteString(w, d.print())
	return err
}

func (d *decoder) print() string {
	p := printer{decoder: d}
	p.comment(0, "The policy of "+d.file+" in effect. Behind each value stands")
	p.comment(0, "the file (under "+d.dir+") and line that set it, or why it counts without one.")
	p.mapping(0, d.root, d.allFields(), "default")
	return p.text()
}

// allFields are those of the policy, and the thresholds that builders have which say
// nothing of their own. A policy has these only as those of its builders.
func (d *decoder) allFields() []field {
	fields := d.pol.fields()
	at := slices.IndexFunc(fields, func(f field) bool { return f.key == "builders" })
	return slices.Insert(fields, at, field{key: "load", value: d.usualLoad.value()})
}

// printer writes a policy line by line.
type printer struct {
	*decoder
	lines []printedLine
	// dash is what the next line begins with: that of the item of a list that it
	// is the first line of.
	dash bool
}

type printedLine struct{ text, from string }

// mapping writes fields in the order in which they are given, as the node has them or
// else as they count. The last word says why they do.
func (p *printer) mapping(depth int, n *yaml.Node, fields []field, why string) {
	var unset []string
	for _, f := range fields {
		var node *yaml.Node
		if n != nil {
			node = valueOf(n, f.key)
		}
		switch {
		case node != nil:
			p.set(depth, f, node)
		case !f.isSet():
			unset = append(unset, f.key)
		case f.as != "":
			p.unset(depth, f, "as "+f.as)
		default:
			p.unset(depth, f, why)
		}
	}
	p.others(depth, n, fields)
	if len(unset) > 0 && fields[0].key != "principal" && fields[0].key != "feature" { // rules have what they have
		p.comment(depth, "not set: "+strings.Join(unset, ", "))
	}
}

// others writes what a file sets and no field has, so that nothing is left out.
func (p *printer) others(depth int, n *yaml.Node, fields []field) {
	if n == nil {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i].Value
		isIt := func(f field) bool { return f.key == key }
		if !slices.ContainsFunc(fields, isIt) && (n != p.root || key != "include") { // which has been joined
			p.node(depth, key+":", n.Content[i+1])
		}
	}
}

// set writes a field that a file sets.
func (p *printer) set(depth int, f field, n *yaml.Node) {
	switch value := f.value.(type) {
	case []field:
		if len(n.Content) == 0 && !f.isSet() {
			p.node(depth, f.key+":", n)
			return
		}
		p.line(depth, f.key+":", "")
		p.mapping(depth+1, n, value, "default")
	case [][]field:
		if len(value) == 0 {
			p.node(depth, f.key+":", n)
			return
		}
		p.line(depth, f.key+":", "")
		for i, item := range value {
			p.item(depth+1, itemNode(n, i, item), item)
		}
	default:
		p.node(depth, f.key+":", n)
	}
}

// itemNode finds the node of an item. What has a name is found by it: the domain that
// is always there need not be in the file.
func itemNode(list *yaml.Node, i int, item []field) *yaml.Node {
	if item[0].key != "name" {
		return list.Content[i]
	}
	isIt := func(n *yaml.Node) bool {
		name := valueOf(n, "name")
		return name != nil && name.Value == item[0].value
	}
	if i < len(list.Content) && isIt(list.Content[i]) {
		return list.Content[i]
	}
	for _, n := range list.Content {
		if isIt(n) {
			return n
		}
	}
	return nil
}

// item writes an item of a list of mappings.
func (p *printer) item(depth int, n *yaml.Node, fields []field) {
	p.dash = true
	if n != nil && n.Kind != yaml.MappingNode { // a trusted key may stand alone
		p.node(depth, "", n)
		return
	}
	p.mapping(depth, n, fields, "default")
}

// unset writes a field that no file sets.
func (p *printer) unset(depth int, f field, why string) {
	switch value := f.value.(type) {
	case []field:
		p.line(depth, f.key+":", "")
		p.mapping(depth+1, nil, value, why)
	case [][]field:
		if len(value) == 0 {
			p.line(depth, f.key+": []", why)
			return
		}
		p.line(depth, f.key+":", "")
		for _, item := range value {
			p.item(depth+1, nil, item)
		}
	default:
		p.line(depth, f.key+": "+valueText(value), why)
	}
}

// node writes what a file has, behind a key with its colon or in a list.
func (p *printer) node(depth int, head string, n *yaml.Node) {
	if p.onOneLine(n) {
		if head != "" {
			head += " "
		}
		p.line(depth, head+nodeText(p.plain(n)), p.place(n))
		return
	}
	if head != "" {
		p.line(depth, head, "")
		depth++
	}
	if n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			p.dash = true
			p.node(depth, "", item)
		}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		p.node(depth, nodeText(p.plain(n.Content[i]))+":", n.Content[i+1])
	}
}
