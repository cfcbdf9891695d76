package policy

import (
	"fmt"
	"path/filepath"

	"gopkg.in/yaml.v3"
)

// places says which file a node of the policy is from. Nodes that are not in it are
// from the file that is being read; afterwards that is the main one.
type places struct {
	current string
	of      map[*yaml.Node]string // of included files
}

func (p *places) file(n *yaml.Node) string {
	if file, included := p.of[n]; included {
		return file
	}
	return p.current
}

// note says that a node with all below it is from a file.
func (p *places) note(n *yaml.Node, file string) {
	p.of[n] = file
	for _, child := range n.Content {
		p.note(child, file)
	}
}

// dirOf is what relative paths at a node start from.
func (d *decoder) dirOf(n *yaml.Node) string {
	if file, included := d.places.of[n]; included {
		return filepath.Dir(file) // whose name is a full path
	}
	return d.dir
}

// at writes where a node is, in the middle of a sentence about another one.
func (d *decoder) at(n, from *yaml.Node) string {
	if file := d.places.file(n); file != d.places.file(from) {
		return fmt.Sprintf("at %s:%d:%d", file, n.Line, n.Column)
	}
	return fmt.Sprintf("on line %d", n.Line)
}
