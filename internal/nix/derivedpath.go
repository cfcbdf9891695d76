package nix

import (
	"fmt"
	"slices"
	"strings"
)

// DerivedPath is what a client asks to have: a path as it is (Built false), or
// outputs of a derivation. Nested ones of dynamic derivations are refused.
type DerivedPath struct {
	Path StorePath
	// Built says that outputs of the derivation Path are meant, not Path itself.
	Built bool
	// Outputs are sorted names; none means all of them ("*"). Only with Built.
	Outputs []string
}

// ParseDerivedPath parses the wire form: "/nix/store/x", "/nix/store/x.drv!*"
// or "/nix/store/x.drv!out,dev".
func ParseDerivedPath(s string) (DerivedPath, error) {
	text, outputs, built := cutLast(s, "!")
	path, err := ParseStorePath(text)
	if err != nil || !built {
		return DerivedPath{Path: path}, err
	}
	if !path.IsDerivation() {
		return DerivedPath{}, fmt.Errorf("derived path %q: not a derivation", clip(s))
	}
	if outputs == "*" {
		return DerivedPath{Path: path, Built: true}, nil
	}
	names := strings.Split(outputs, ",")
	for _, name := range names {
		if err := CheckName(name); err != nil {
			return DerivedPath{}, fmt.Errorf("derived path %q: output: %w", clip(s), err)
		}
	}
	slices.Sort(names)
	return DerivedPath{Path: path, Built: true, Outputs: slices.Compact(names)}, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// String returns the wire form.
func (d DerivedPath) String() string {
	switch {
	case !d.Built:
		return d.Path.String()
	case len(d.Outputs) == 0:
		return d.Path.String() + "!*"
	default:
		return d.Path.String() + "!" + strings.Join(d.Outputs, ",")
	}
}

// Wants reports whether the output is asked for.
func (d DerivedPath) Wants(output string) bool {
	return d.Built && (len(d.Outputs) == 0 || slices.Contains(d.Outputs, output))
}
