package nix

import (
	"errors"
	"fmt"
)

// OutputKind is how the path of an output comes about.
type OutputKind uint8

// The kinds.
const (
	// InputAddressed: the path follows from how the output is built.
	InputAddressed OutputKind = iota + 1
	// FixedOutput: the content is known beforehand, and so is the path.
	FixedOutput
	// Floating: the path follows from the content that the build will make.
	Floating
	// Impure: like Floating, and two builds need not agree.
	Impure
	// Deferred: input-addressed, but some input's path is not known yet.
	Deferred
)

func (k OutputKind) String() string {
	names := [...]string{"none", "input-addressed", "fixed", "floating", "impure", "deferred"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("OutputKind(%d)", uint8(k))
}

// PathKnown reports whether the path is known before the build. Outputs of
// which it is not need the feature ca-derivations.
func (k OutputKind) PathKnown() bool { return k == InputAddressed || k == FixedOutput }

// Kind tells the kind by the table of [DerivationOutput] and refuses what is not
// in it. Whether a fixed output's path fits its hash is for CheckOutput.
func (o DerivationOutput) Kind() (OutputKind, error) {
	if o.HashAlgo == "" {
		switch {
		case o.Hash != "":
			return 0, fmt.Errorf("output %q has a hash without an algorithm", clip(o.Name))
		case o.Path.IsZero():
			return Deferred, nil
		}
		return InputAddressed, nil
	}
	if _, err := ParseOutputMethod(o.HashAlgo); err != nil {
		return 0, fmt.Errorf("output %q: %w", clip(o.Name), err)
	}
	switch {
	case o.Hash == "impure" && o.Path.IsZero():
		return Impure, nil
	case o.Hash == "" && o.Path.IsZero():
		return Floating, nil
	case o.Hash == "" || o.Hash == "impure":
		return 0, fmt.Errorf("output %q has a path before it is built", clip(o.Name))
	case o.Path.IsZero():
		return 0, fmt.Errorf("fixed output %q has no path", clip(o.Name))
	}
	_, err := o.ContentAddress()
	return FixedOutput, err
}

// ContentAddress returns what a fixed output must have. The hash may be written
// in any of Nix's encodings.
func (o DerivationOutput) ContentAddress() (ContentAddress, error) {
	m, err := ParseOutputMethod(o.HashAlgo)
	if err != nil {
		return ContentAddress{}, fmt.Errorf("output %q: %w", clip(o.Name), err)
	}
	hash, err := decodeDigest(m.Algo, o.Hash)
	if err != nil {
		return ContentAddress{}, fmt.Errorf("output %q: hash: %w", clip(o.Name), err)
	}
	return ContentAddress{Method: m.Method, Hash: hash}, nil
}

// CheckOutput tells the kind and, of a fixed output, whether the path follows
// from the hash: Nix before 2.36 ignored the path.
func (o DerivationOutput) CheckOutput(drvName string) (OutputKind, error) {
	kind, err := o.Kind()
	if err != nil || kind != FixedOutput {
		return kind, err
	}
	ca, err := o.ContentAddress()
	if err != nil {
		return 0, err
	}
	path, err := ContentAddressedPath(outputPathName(drvName, o.Name), ca, nil, false)
	if err != nil {
		return 0, err
	}
	if path != o.Path {
		return 0, fmt.Errorf("output %q has path %s, which does not match its content address", clip(o.Name), o.Path)
	}
	return kind, nil
}

// Kind returns the kind that all outputs have: Nix builds no mixtures, and
// several fixed outputs neither.
func (d *BasicDerivation) Kind() (OutputKind, error) {
	if len(d.Outputs) == 0 {
		return 0, errors.New("derivation has no outputs")
	}
	all, err := d.Outputs[0].Kind()
	if err != nil {
		return 0, err
	}
	for _, o := range d.Outputs[1:] {
		kind, err := o.Kind()
		switch {
		case err != nil:
			return 0, err
		case kind != all:
			return 0, fmt.Errorf("derivation mixes %s and %s outputs", all, kind)
		case kind == FixedOutput:
			return 0, errors.New("derivation has more than one fixed output")
		}
	}
	if all == FixedOutput && d.Outputs[0].Name != "out" {
		return 0, fmt.Errorf("the fixed output is called %q, not \"out\"", clip(d.Outputs[0].Name))
	}
	return all, nil
}
