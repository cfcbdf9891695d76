package wire

import "nixbastion/internal/nix"

// RealisationJSON reads a realisation as JSON in a string. It never returns nil.
func (r *Reader) RealisationJSON() *nix.Realisation {
	text := r.String(MaxText)
	if r.err != nil {
		return &nix.Realisation{}
	}
	realisation, err := nix.ParseRealisationJSON(text)
	if err != nil {
		r.Fail(err)
		return &nix.Realisation{}
	}
	return realisation
}

// RealisationJSON writes a realisation as JSON in a string.
func (w *Writer) RealisationJSON(realisation *nix.Realisation) {
	w.String(nix.RealisationJSON(realisation))
}

// RealisationSigs reads the signatures of a realisation.
func (r *Reader) RealisationSigs() []string { return r.StringSet(MaxSigs, MaxString) }
