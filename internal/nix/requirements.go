package nix

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

const (
	// attrsVar holds all attributes as JSON, if the derivation wants them so.
	attrsVar = "__json"
	// featuresAttr is where a derivation says what its builder must have.
	featuresAttr = "requiredSystemFeatures"
	// caFeature is what Nix adds for outputs whose path is not known beforehand.
	caFeature = "ca-derivations"
)

// Requirements returns what a builder must be to build the derivation: its
// system and its features, sorted and without duplicates. With structured
// attributes the features are in their JSON, and the environment is ignored.
func (d *BasicDerivation) Requirements() (system string, features []string, err error) {
	kind, err := d.Kind()
	if err != nil {
		return "", nil, err
	}
	if attrs, ok := d.Lookup(attrsVar); ok {
		features, err = structuredFeatures(attrs)
	} else {
		features = environmentFeatures(d)
	}
	if err != nil {
		return "", nil, err
	}
	if !kind.PathKnown() {
		features = append(features, caFeature)
	}
	slices.Sort(features)
	return d.Platform, slices.Compact(features), nil
}

func environmentFeatures(d *BasicDerivation) []string {
	text, _ := d.Lookup(featuresAttr)
	return strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\n\r", r) })
}

func structuredFeatures(attrs string) ([]string, error) {
	// A map, since fields of a struct would match names in any case.
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(attrs), &object); err != nil {
		return nil, fmt.Errorf("structured attributes: %w", err)
	}
	value, ok := object[featuresAttr]
	if !ok {
		return nil, nil
	}
	var features []string
	if err := json.Unmarshal(value, &features); err != nil || bytes.Equal(value, []byte("null")) {
		return nil, fmt.Errorf("structured attributes: %s is not a list of strings", featuresAttr)
	}
	return features, nil
}

// Attribute returns an attribute of the derivation as text: a variable of its
// environment or, with structured attributes, a string or number of their JSON.
func (d *BasicDerivation) Attribute(name string) (string, bool) {
	attrs, structured := d.Lookup(attrsVar)
	if !structured {
		return d.Lookup(name)
	}
	var object map[string]json.RawMessage
	if json.Unmarshal([]byte(attrs), &object) != nil {
		return "", false
	}
	value, ok := object[name]
	if !ok {
		return "", false
	}
	var text string
	var number json.Number
	switch {
	case json.Unmarshal(value, &text) == nil:
		return text, true
	case json.Unmarshal(value, &number) == nil:
		return number.String(), true
	}
	return "", false
}
