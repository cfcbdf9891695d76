package policy

import (
	_ "embed"
	"slices"

	"gopkg.in/yaml.v3"
)

// schemaJSON is made by a test of the shapes below and of the comments of
// config.example.yaml.
//
//go:embed schema.json
var schemaJSON []byte

// Schema returns the JSON Schema (draft 7) of a policy file and of what it includes,
// for editors. What passes may still have mistakes, as in names of files or in what
// parts say about each other; what does not pass is refused by [Load].
func Schema() []byte { return slices.Clone(schemaJSON) }

// shape is what a value may be, in the words of JSON Schema.
//
// Nobody writes shapes down: the readers are asked. Each of them is called with a
// node of every kind and without a value, and notes by expects what it would read.
type shape struct {
	Description          string            `json:"description,omitempty"`
	Type                 string            `json:"type,omitempty"`
	Enum                 []string          `json:"enum,omitempty"`
	Const                *int              `json:"const,omitempty"`
	Pattern              string            `json:"pattern,omitempty"`
	MinLength            int               `json:"minLength,omitempty"`
	Minimum              *float64          `json:"minimum,omitempty"`
	Maximum              *float64          `json:"maximum,omitempty"`
	Items                *shape            `json:"items,omitempty"`
	UniqueItems          bool              `json:"uniqueItems,omitempty"`
	Properties           map[string]*shape `json:"properties,omitempty"`
	Required             []string          `json:"required,omitempty"`
	AdditionalProperties any               `json:"additionalProperties,omitempty"` // false or a shape
	AnyOf                []*shape          `json:"anyOf,omitempty"`
}

// policyShape is that of the whole file.
func policyShape() *shape {
	d := newDecoder("schema", realDisk{})
	return d.shapeOf(d.settings)
}

// expects notes, while shapes are asked for, what a reader expects of a node of a
// kind. It reports whether that is so, and there is nothing to read.
func (d *decoder) expects(n *yaml.Node, kind yaml.Kind, what func() *shape) bool {
	if d.shapes == nil {
		return false
	}
	if n.Kind == kind {
		*d.shapes = append(*d.shapes, what())
	}
	return true
}

// shapeOf asks a reader what it reads.
func (d *decoder) shapeOf(read func(*yaml.Node)) *shape {
	outer := d.shapes
	defer func() { d.shapes = outer }()
	var found []*shape
	d.shapes = &found
	for _, kind := range []yaml.Kind{yaml.ScalarNode, yaml.SequenceNode, yaml.MappingNode} {
		read(&yaml.Node{Kind: kind})
	}
	if len(found) == 1 {
		return found[0]
	}
	return &shape{AnyOf: found}
}

// object is the shape of a mapping with known keys.
func (d *decoder) object(path string, settings []setting) *shape {
	s := &shape{Type: "object", Properties: map[string]*shape{}, AdditionalProperties: false}
	for _, setting := range settings {
		s.Properties[setting.key] = d.shapeOf(setting.read)
		d.schema[path+setting.key] = true
	}
	return s
}

// anyKey is the shape of a mapping whose keys are names.
func (d *decoder) anyKey(visit func(key, value *yaml.Node)) *shape {
	key := &yaml.Node{} // of no kind: it has no shape of its own
	return &shape{Type: "object", AdditionalProperties: d.shapeOf(func(value *yaml.Node) { visit(key, value) })}
}

// shapeRequires notes which keys the mapping always needs whose shape was noted last.
func (d *decoder) shapeRequires(n *yaml.Node, hints [][2]string) {
	if d.shapes == nil || n.Kind != yaml.MappingNode {
		return
	}
	s := (*d.shapes)[len(*d.shapes)-1]
	for _, h := range hints {
		s.Required = append(s.Required, h[0])
	}
}

func textShape() *shape { return &shape{Type: "string", MinLength: 1} }

func numberShape(kind string, least, most float64) *shape {
	return &shape{Type: kind, Minimum: &least, Maximum: &most}
}

// unitShape is that of numbers with units. With orZero it may be the number zero.
func unitShape(pattern string, orZero bool) *shape {
	text := &shape{Type: "string", Pattern: pattern}
	if !orZero {
		return text
	}
	return &shape{AnyOf: []*shape{text, {Const: new(int)}}}
}
