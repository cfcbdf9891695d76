package wire

import "nixbastion/internal/nix"

// MaxDerivedPath holds a path and many names of outputs, in bytes.
const MaxDerivedPath = MaxString

// DerivedPath reads what a client asks to have.
func (r *Reader) DerivedPath() nix.DerivedPath {
	text := r.String(MaxDerivedPath)
	if r.err != nil {
		return nix.DerivedPath{}
	}
	target, err := nix.ParseDerivedPath(text)
	if err != nil {
		r.Fail(err)
		return nix.DerivedPath{}
	}
	return target
}

// DerivedPath writes what a client asks to have.
func (w *Writer) DerivedPath(target nix.DerivedPath) { w.String(target.String()) }

// OldDerivedPath reads the form of the serve protocol and of worker protocols
// before 1.30: a bare derivation stands for all its outputs, and there is no way
// to ask for the .drv file itself.
func (r *Reader) OldDerivedPath() nix.DerivedPath {
	target := r.DerivedPath()
	if target.Path.IsDerivation() {
		target.Built = true
	}
	return target
}

// OldDerivedPath writes that form. A .drv file itself has no words in it.
func (w *Writer) OldDerivedPath(target nix.DerivedPath) {
	if target.Built && len(target.Outputs) == 0 {
		target.Built = false
	}
	w.DerivedPath(target)
}
