package nix

import "slices"

// EnvVar is one variable of a derivation's environment.
type EnvVar struct{ Name, Value string }

// DerivationOutput is one output of a derivation as written, with the fields
// that tell its kind:
//
//	Path    HashAlgo         Hash      kind
//	set     ""               ""        input-addressed
//	set     [r:|text:]algo   hex       fixed output
//	zero    [r:|text:]algo   ""        floating content-addressed
//	zero    [r:|text:]algo   "impure"  impure
//	zero    ""               ""        deferred
type DerivationOutput struct {
	Name string
	// Path is zero where it is not known before the build.
	Path           StorePath
	HashAlgo, Hash string
}

// BasicDerivation is a derivation with its inputs flattened to paths: the
// argument of BuildDerivation. It is forwarded as it came, order and
// environment included, since the ids of content-addressed outputs depend on
// every byte.
type BasicDerivation struct {
	Outputs   []DerivationOutput
	InputSrcs []StorePath
	// Platform is the system, "x86_64-linux" or "builtin" for example.
	Platform string
	Builder  string
	Args     []string
	Env      []EnvVar
}

// InputDrv is a derivation that must be built first and the outputs used of it.
type InputDrv struct {
	Path    StorePath
	Outputs []string
}

// Derivation is the content of a .drv file. Dynamic derivations (outputs of
// outputs) are refused by the parser.
type Derivation struct {
	BasicDerivation
	InputDrvs []InputDrv
}

// Lookup returns the value of an environment variable; the last one of a name
// wins, as in Nix.
func (d *BasicDerivation) Lookup(name string) (string, bool) {
	for _, v := range slices.Backward(d.Env) {
		if v.Name == name {
			return v.Value, true
		}
	}
	return "", false
}

// OutputPaths returns the paths of all outputs, and false if one of them is not
// known before the build.
func (d *BasicDerivation) OutputPaths() ([]StorePath, bool) {
	paths := make([]StorePath, 0, len(d.Outputs))
	for _, o := range d.Outputs {
		if o.Path.IsZero() {
			return nil, false
		}
		paths = append(paths, o.Path)
	}
	return paths, true
}
