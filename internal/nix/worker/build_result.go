package worker

import (
	"cmp"
	"slices"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readBuildResult reads how a build ended.
func (c *conn) readBuildResult() *nix.BuildResult {
	r := &nix.BuildResult{Status: knownStatus(c.r.Uint8()), ErrorMsg: c.readText()}
	if r.Status.Success() {
		r.ErrorMsg = ""
	}
	if c.version >= sinceBuildTimes {
		r.TimesBuilt = c.r.Uint32()
		r.IsNonDeterministic = c.r.Bool()
		r.StartTime = c.r.Int64()
		r.StopTime = c.r.Int64()
	}
	if c.version >= sinceCPUTimes {
		r.CPUUser = c.readOptionalInt64()
		r.CPUSystem = c.readOptionalInt64()
	}
	if c.version >= sinceBuiltOutputs {
		r.Outputs = c.readBuiltOutputs()
	}
	return r
}

func (c *conn) writeBuildResult(r *nix.BuildResult) {
	c.w.Uint64(uint64(sentStatus(r.Status)))
	c.w.String(cutText(r.ErrorMsg))
	if c.version >= sinceBuildTimes {
		c.w.Uint64(uint64(r.TimesBuilt))
		c.w.Bool(r.IsNonDeterministic)
		c.w.Int64(r.StartTime)
		c.w.Int64(r.StopTime)
	}
	if c.version >= sinceCPUTimes {
		c.writeOptionalInt64(r.CPUUser)
		c.writeOptionalInt64(r.CPUSystem)
	}
	if c.version >= sinceBuiltOutputs {
		c.writeBuiltOutputs(r.Outputs)
	}
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

func (c *conn) readOptionalInt64() *int64 {
	if !c.r.Optional() {
		return nil
	}
	n := c.r.Int64()
	return &n
}

func (c *conn) writeOptionalInt64(n *int64) {
	c.w.Bool(n != nil)
	if n != nil {
		c.w.Int64(*n)
	}
}

// readBuiltOutputs reads a map from output to realisation: from output name to
// path with the feature, else from the old id to JSON.
func (c *conn) readBuiltOutputs() []nix.BuiltOutput {
	element := c.readOldBuiltOutput
	if c.has(FeatureRealisationPaths) {
		element = c.readBuiltOutput
	}
	outputs := wire.List(c.r, maxOutputs, element)
	slices.SortFunc(outputs, func(a, b nix.BuiltOutput) int { return strings.Compare(a.Name, b.Name) })
	return outputs
}

func (c *conn) writeBuiltOutputs(outputs []nix.BuiltOutput) {
	c.w.Uint64(uint64(len(outputs)))
	if c.has(FeatureRealisationPaths) {
		for _, o := range slices.SortedFunc(slices.Values(outputs), byName) {
			c.w.String(o.Name)
			c.w.StorePath(o.Path)
			c.w.StringSet(o.Sigs)
		}
		return
	}
	for _, o := range slices.SortedFunc(slices.Values(outputs), byID) {
		id := oldID(o)
		c.w.String(id.String())
		c.w.String(nix.RealisationJSON(&nix.Realisation{ID: id, OutPath: o.Path, Sigs: o.Sigs}))
	}
}

func byName(a, b nix.BuiltOutput) int { return strings.Compare(a.Name, b.Name) }

// byID is the order of a map whose keys are old ids.
func byID(a, b nix.BuiltOutput) int {
	return strings.Compare(oldID(a).String(), oldID(b).String())
}

// noDrvHash stands for a hash that is not known. Nix 2.35 and newer send the
// same to peers that expect one.
var noDrvHash = "sha256:" + strings.Repeat("0", 64)

func oldID(o nix.BuiltOutput) nix.DrvOutput {
	return nix.DrvOutput{DrvHash: cmp.Or(o.DrvHash, noDrvHash), Output: o.Name}
}

func (c *conn) readBuiltOutput() nix.BuiltOutput {
	return nix.BuiltOutput{Name: c.readOutputName(), Path: c.r.StorePath(), Sigs: c.readRealisationSigs()}
}

// readOldBuiltOutput takes everything from the JSON; the id before it is the same.
func (c *conn) readOldBuiltOutput() nix.BuiltOutput {
	c.r.String(maxString)
	r := c.readRealisationJSON()
	o := nix.BuiltOutput{Name: r.ID.Output, DrvHash: r.ID.DrvHash, Path: r.OutPath, Sigs: r.Sigs}
	if o.DrvHash == noDrvHash {
		o.DrvHash = ""
	}
	return o
}

// readKeyedResults reads the results of several targets.
func (c *conn) readKeyedResults() []nix.KeyedBuildResult {
	return wire.List(c.r, c.limits.Paths, c.readKeyedResult)
}

func (c *conn) readKeyedResult() nix.KeyedBuildResult {
	return nix.KeyedBuildResult{Target: c.readDerivedPath(), Result: c.readBuildResult()}
}

func (c *conn) writeKeyedResult(r nix.KeyedBuildResult) {
	c.writeDerivedPath(r.Target)
	c.writeBuildResult(r.Result)
}

func (c *conn) writeKeyedResults(results []nix.KeyedBuildResult) {
	c.w.Uint64(uint64(len(results)))
	for _, r := range results {
		c.writeKeyedResult(r)
	}
}
