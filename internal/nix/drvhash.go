package nix

import (
	"errors"
	"fmt"
	"slices"
)

// ErrDeferred says that a derivation has no hash from which paths of outputs
// could follow, because the path of some input is only known when it is built.
var ErrDeferred = errors.New("depends on outputs whose paths are not known before they are built")

// InputHash is what stands for a derivation where another one has it as input,
// in the text whose hash gives the other one's output paths. The zero value is
// "deferred".
type InputHash struct {
	// Derivation is of an input-addressed derivation.
	Derivation Hash
	// Outputs are of a derivation with fixed outputs, by output: only what is
	// built matters of it, not how.
	Outputs map[string]Hash
}

// Deferred reports whether there is no hash.
func (h InputHash) Deferred() bool { return h.Derivation.IsZero() && h.Outputs == nil }

// A DerivationHasher computes hashes of derivations "modulo" the ways in which
// their fixed outputs are fetched, from the whole closure of derivations. It
// remembers those of inputs; it is not safe for concurrent use.
type DerivationHasher struct {
	// Read returns a derivation. Paths of outputs follow from what it returns,
	// so that it must have verified the content against the derivation's path.
	Read func(StorePath) (*Derivation, error)

	known map[StorePath]InputHash
	open  map[StorePath]bool // being computed; finding one again is a cycle
}

// InputHash returns the hash of a derivation as an input of others.
func (h *DerivationHasher) InputHash(path StorePath) (InputHash, error) {
	if known, ok := h.known[path]; ok {
		return known, nil
	}
	if h.open[path] {
		return InputHash{}, fmt.Errorf("derivation %s depends on itself", path)
	}
	if h.known == nil {
		h.known, h.open = make(map[StorePath]InputHash), make(map[StorePath]bool)
	}
	h.open[path] = true
	defer delete(h.open, path)
	hash, err := h.inputHash(path)
	if err != nil {
		return InputHash{}, fmt.Errorf("hash derivation %s: %w", path, err)
	}
	h.known[path] = hash
	return hash, nil
}

func (h *DerivationHasher) inputHash(path StorePath) (InputHash, error) {
	drv, err := h.Read(path)
	if err != nil {
		return InputHash{}, err
	}
	kind, err := drv.Kind()
	switch {
	case err != nil:
		return InputHash{}, err
	case kind == FixedOutput:
		return fixedHash(drv.Outputs[0])
	case kind != InputAddressed:
		return InputHash{}, nil
	}
	text, err := h.moduloText(drv)
	if errors.Is(err, ErrDeferred) {
		return InputHash{}, nil
	}
	if err != nil {
		return InputHash{}, err
	}
	return InputHash{Derivation: HashBytes(SHA256, []byte(text))}, nil
}

func fixedHash(o DerivationOutput) (InputHash, error) {
	hash, err := o.fixedHash()
	if err != nil {
		return InputHash{}, err
	}
	return InputHash{Outputs: map[string]Hash{o.Name: hash}}, nil
}

func (o DerivationOutput) fixedHash() (Hash, error) {
	ca, err := o.ContentAddress()
	if err != nil {
		return Hash{}, err
	}
	text := fmt.Sprintf("fixed:out:%s:%s:%s", o.HashAlgo, ca.Hash.Base16(), o.Path)
	return HashBytes(SHA256, []byte(text)), nil
}

// moduloText prints a derivation with the hashes of its inputs in place of their
// paths.
func (h *DerivationHasher) moduloText(drv *Derivation) (string, error) {
	var inputs []hashedInput
	for _, in := range drv.InputDrvs {
		hash, err := h.InputHash(in.Path)
		if err != nil {
			return "", err
		}
		hashed, err := hash.inputs(in)
		if err != nil {
			return "", err
		}
		inputs = append(inputs, hashed...)
	}
	return drv.aterm(inputs), nil
}

func (h InputHash) inputs(in InputDrv) ([]hashedInput, error) {
	if h.Deferred() {
		return nil, fmt.Errorf("input %s: %w", in.Path, ErrDeferred)
	}
	if h.Outputs == nil {
		return []hashedInput{{key: h.Derivation.Base16(), outputs: in.Outputs}}, nil
	}
	var inputs []hashedInput
	for _, name := range in.Outputs {
		hash, ok := h.Outputs[name]
		if !ok {
			return nil, fmt.Errorf("input %s has no output %q", in.Path, clip(name))
		}
		inputs = append(inputs, hashedInput{key: hash.Base16(), outputs: []string{"out"}})
	}
	return inputs, nil
}

// MaskedHash returns the hash from which the paths of an input-addressed or
// deferred derivation's own outputs follow; they are left out of it. ErrDeferred
// if there is none.
func (h *DerivationHasher) MaskedHash(drv *Derivation) (Hash, error) {
	text, err := h.MaskedText(drv)
	if err != nil {
		return Hash{}, err
	}
	return HashBytes(SHA256, []byte(text)), nil
}

// MaskedText returns the text that MaskedHash hashes.
func (h *DerivationHasher) MaskedText(drv *Derivation) (string, error) {
	masked := *drv
	masked.BasicDerivation = drv.masked()
	return h.moduloText(&masked)
}

// OutputPaths computes the paths of the outputs of an input-addressed or
// deferred derivation, in the order of drv.Outputs. Name is the derivation's,
// without ".drv".
func (h *DerivationHasher) OutputPaths(name string, drv *Derivation) ([]StorePath, error) {
	masked, err := h.MaskedHash(drv)
	if err != nil {
		return nil, err
	}
	paths := make([]StorePath, len(drv.Outputs))
	for i, o := range drv.Outputs {
		if paths[i], err = OutputPath(name, o.Name, masked); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// CheckOutputPaths reports why a derivation's declared output paths are not
// those that follow from it: whoever may name a path freely can plant content
// under it. Outputs without a path yet pass; input-addressed ones pass only if
// all that they depend on is known.
func (h *DerivationHasher) CheckOutputPaths(name string, drv *Derivation) error {
	kind, err := drv.Kind()
	switch {
	case err != nil:
		return err
	case kind == FixedOutput:
		_, err = drv.Outputs[0].CheckOutput(name)
		return err
	case kind != InputAddressed:
		return nil
	}
	paths, err := h.OutputPaths(name, drv)
	if err != nil {
		return err
	}
	for i, o := range drv.Outputs {
		if o.Path != paths[i] {
			return fmt.Errorf("derivation %q has path %s for its output %q, which should be %s",
				clip(name), o.Path, clip(o.Name), paths[i])
		}
	}
	return nil
}

// masked returns the derivation without the paths of its input-addressed
// outputs, also where the environment names them.
func (d *BasicDerivation) masked() BasicDerivation {
	m := *d
	m.Outputs = slices.Clone(d.Outputs)
	m.Env = slices.Clone(d.Env)
	own := make(map[string]bool, len(m.Outputs))
	for i, o := range m.Outputs {
		own[o.Name] = true
		if o.HashAlgo == "" {
			m.Outputs[i].Path = StorePath{}
		}
	}
	for i, v := range m.Env {
		if own[v.Name] {
			m.Env[i].Value = ""
		}
	}
	return m
}

// OutputHash returns the hash in the old DrvOutput id of an output, as Nix up to
// 2.34 computes it for a derivation that was sent without its input derivations.
func (d *BasicDerivation) OutputHash(output string) (Hash, error) {
	i := slices.IndexFunc(d.Outputs, func(o DerivationOutput) bool { return o.Name == output })
	if i < 0 {
		return Hash{}, fmt.Errorf("derivation has no output %q", clip(output))
	}
	kind, err := d.Kind()
	switch {
	case err != nil:
		return Hash{}, err
	case kind == FixedOutput:
		return d.Outputs[i].fixedHash()
	}
	m := d.masked()
	return HashBytes(SHA256, []byte(m.aterm(nil))), nil
}
