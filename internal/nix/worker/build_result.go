package worker

import (
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readBuildResult reads how a build ended.
func (c *conn) readBuildResult() *nix.BuildResult {
	r := c.r.BuildEnd()
	if c.version >= sinceBuildTimes {
		c.r.BuildTimes(r)
	}
	if c.version >= sinceCPUTimes {
		r.CPUUser = c.readOptionalInt64()
		r.CPUSystem = c.readOptionalInt64()
	}
	if c.version >= sinceBuiltOutputs {
		r.Outputs = c.r.BuiltOutputs(c.has(FeatureRealisationPaths))
	}
	return r
}

func (c *conn) writeBuildResult(r *nix.BuildResult) {
	c.w.BuildEnd(r)
	if c.version >= sinceBuildTimes {
		c.w.BuildTimes(r)
	}
	if c.version >= sinceCPUTimes {
		c.writeOptionalInt64(r.CPUUser)
		c.writeOptionalInt64(r.CPUSystem)
	}
	if c.version >= sinceBuiltOutputs {
		c.w.BuiltOutputs(r.Outputs, c.has(FeatureRealisationPaths))
	}
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
