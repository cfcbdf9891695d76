package wire

import (
	"fmt"
	"math"

	"nixbastion/internal/nix"
)

// Derivation reads a derivation with its inputs flattened, at most paths of them,
// which has the same form in every version of both protocols. Its order and its
// environment are kept as they came. Its strings are bounded by the budget alone.
func (r *Reader) Derivation(paths int) *nix.BasicDerivation {
	drv := &nix.BasicDerivation{}
	drv.Outputs = List(r, MaxOutputs, r.output)
	r.checkOutputs(drv.Outputs)
	drv.InputSrcs = r.StorePaths(paths)
	drv.Platform = r.String(MaxString)
	drv.Builder = r.String(math.MaxInt32)
	drv.Args = r.Strings(MaxArguments, math.MaxInt32)
	drv.Env = List(r, MaxEnv, func() nix.EnvVar {
		return nix.EnvVar{Name: r.String(math.MaxInt32), Value: r.String(math.MaxInt32)}
	})
	return drv
}

// Derivation writes a derivation with its inputs flattened.
func (w *Writer) Derivation(drv *nix.BasicDerivation) {
	w.Uint64(uint64(len(drv.Outputs)))
	for _, o := range drv.Outputs {
		w.String(o.Name)
		w.StorePath(o.Path)
		w.String(o.HashAlgo)
		w.String(o.Hash)
	}
	w.StorePaths(drv.InputSrcs)
	w.String(drv.Platform)
	w.String(drv.Builder)
	w.Strings(drv.Args)
	w.Uint64(uint64(len(drv.Env)))
	for _, v := range drv.Env {
		w.String(v.Name)
		w.String(v.Value)
	}
}

func (r *Reader) output() nix.DerivationOutput {
	return nix.DerivationOutput{
		Name: r.OutputName(), Path: r.OptionalStorePath(),
		HashAlgo: r.String(MaxString), Hash: r.String(MaxString),
	}
}

// OutputName reads the name of a derivation's output.
func (r *Reader) OutputName() string {
	name := r.String(MaxString)
	if r.err != nil {
		return ""
	}
	if err := nix.CheckName(name); err != nil {
		r.Fail(fmt.Errorf("output: %w", err))
	}
	return name
}

// checkOutputs refuses a name that comes twice: of two such outputs Nix takes
// the first, and what is checked here must be what is built there.
func (r *Reader) checkOutputs(outputs []nix.DerivationOutput) {
	seen := make(map[string]bool, len(outputs))
	for _, o := range outputs {
		if seen[o.Name] {
			r.Fail(fmt.Errorf("output %q comes twice", o.Name))
		}
		seen[o.Name] = true
	}
}
