package wire

import (
	"cmp"
	"slices"
	"strings"

	"nixbastion/internal/nix"
)

// The parts of a BuildResult stand in the same order in both protocols: status
// and text, times, in the worker protocol CPU times, outputs. Which of them are
// there is a matter of the version.

// BuildEnd reads how a build ended, and starts its result.
func (r *Reader) BuildEnd() *nix.BuildResult {
	result := &nix.BuildResult{Status: knownStatus(r.Uint8()), ErrorMsg: r.UserText()}
	if result.Status.Success() {
		result.ErrorMsg = ""
	}
	return result
}

// BuildEnd writes how a build ended.
func (w *Writer) BuildEnd(result *nix.BuildResult) {
	w.Uint64(uint64(sentStatus(result.Status)))
	w.String(CutText(result.ErrorMsg))
}

// knownStatus makes a status of a newer Nix a failure without further meaning.
func knownStatus(n uint8) nix.BuildStatus {
	if n > uint8(nix.StatusHashMismatch) {
		return nix.StatusMiscFailure
	}
	return nix.BuildStatus(n)
}

// sentStatus replaces the status that only Nix 2.32 and 2.33 know: newer clients
// refuse the whole message.
func sentStatus(s nix.BuildStatus) nix.BuildStatus {
	if s == nix.StatusHashMismatch {
		return nix.StatusOutputRejected
	}
	return s
}

// BuildTimes reads how often and when was built into a result.
func (r *Reader) BuildTimes(result *nix.BuildResult) {
	result.TimesBuilt = r.Uint32()
	result.IsNonDeterministic = r.Bool()
	result.StartTime = r.Int64()
	result.StopTime = r.Int64()
}

// BuildTimes writes how often and when was built.
func (w *Writer) BuildTimes(result *nix.BuildResult) {
	w.Uint64(uint64(result.TimesBuilt))
	w.Bool(result.IsNonDeterministic)
	w.Int64(result.StartTime)
	w.Int64(result.StopTime)
}

// BuiltOutputs reads a map from output to realisation: byName from the name of
// the output to path and signatures, else from the old id to JSON.
func (r *Reader) BuiltOutputs(byName bool) []nix.BuiltOutput {
	element := r.oldBuiltOutput
	if byName {
		element = r.builtOutput
	}
	outputs := List(r, MaxOutputs, element)
	slices.SortFunc(outputs, compareNames)
	return outputs
}

// BuiltOutputs writes that map.
func (w *Writer) BuiltOutputs(outputs []nix.BuiltOutput, byName bool) {
	w.Uint64(uint64(len(outputs)))
	if byName {
		for _, o := range slices.SortedFunc(slices.Values(outputs), compareNames) {
			w.String(o.Name)
			w.StorePath(o.Path)
			w.StringSet(o.Sigs)
		}
		return
	}
	for _, o := range slices.SortedFunc(slices.Values(outputs), compareIDs) {
		id := oldID(o)
		w.String(id.String())
		w.RealisationJSON(&nix.Realisation{ID: id, OutPath: o.Path, Sigs: o.Sigs})
	}
}

func compareNames(a, b nix.BuiltOutput) int { return strings.Compare(a.Name, b.Name) }

// compareIDs is the order of a map whose keys are old ids.
func compareIDs(a, b nix.BuiltOutput) int {
	return strings.Compare(oldID(a).String(), oldID(b).String())
}

// noDrvHash stands for a hash that is not known. Nix 2.35 and newer send the
// same to peers that expect one.
var noDrvHash = "sha256:" + strings.Repeat("0", 64)

func oldID(o nix.BuiltOutput) nix.DrvOutput {
	return nix.DrvOutput{DrvHash: cmp.Or(o.DrvHash, noDrvHash), Output: o.Name}
}

func (r *Reader) builtOutput() nix.BuiltOutput {
	return nix.BuiltOutput{Name: r.OutputName(), Path: r.StorePath(), Sigs: r.RealisationSigs()}
}

// oldBuiltOutput takes everything from the JSON; the id before it is the same.
func (r *Reader) oldBuiltOutput() nix.BuiltOutput {
	r.String(MaxString)
	built := r.RealisationJSON()
	o := nix.BuiltOutput{Name: built.ID.Output, DrvHash: built.ID.DrvHash, Path: built.OutPath, Sigs: built.Sigs}
	if o.DrvHash == noDrvHash {
		o.DrvHash = ""
	}
	return o
}
