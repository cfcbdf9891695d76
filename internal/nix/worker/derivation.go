package worker

import (
	"fmt"
	"math"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readDerivation reads a derivation with its inputs flattened, which has the
// same form in every version. Its order and its environment are kept as they
// came. Its strings are bounded by the message's budget alone.
func (c *conn) readDerivation() *nix.BasicDerivation {
	drv := &nix.BasicDerivation{}
	drv.Outputs = wire.List(c.r, maxOutputs, c.readOutput)
	c.checkOutputs(drv.Outputs)
	drv.InputSrcs = c.r.StorePaths(c.limits.Paths)
	drv.Platform = c.r.String(maxString)
	drv.Builder = c.r.String(math.MaxInt32)
	drv.Args = c.r.Strings(maxArguments, math.MaxInt32)
	drv.Env = wire.List(c.r, maxEnv, func() nix.EnvVar {
		return nix.EnvVar{Name: c.r.String(math.MaxInt32), Value: c.r.String(math.MaxInt32)}
	})
	return drv
}

func (c *conn) writeDerivation(drv *nix.BasicDerivation) {
	c.w.Uint64(uint64(len(drv.Outputs)))
	for _, o := range drv.Outputs {
		c.w.String(o.Name)
		c.w.StorePath(o.Path)
		c.w.String(o.HashAlgo)
		c.w.String(o.Hash)
	}
	c.w.StorePaths(drv.InputSrcs)
	c.w.String(drv.Platform)
	c.w.String(drv.Builder)
	c.w.Strings(drv.Args)
	c.w.Uint64(uint64(len(drv.Env)))
	for _, v := range drv.Env {
		c.w.String(v.Name)
		c.w.String(v.Value)
	}
}

func (c *conn) readOutput() nix.DerivationOutput {
	return nix.DerivationOutput{
		Name: c.readOutputName(), Path: c.r.OptionalStorePath(),
		HashAlgo: c.r.String(maxString), Hash: c.r.String(maxString),
	}
}

func (c *conn) readOutputName() string {
	name := c.r.String(maxString)
	if c.r.Err() != nil {
		return ""
	}
	if err := nix.CheckName(name); err != nil {
		c.r.Fail(fmt.Errorf("output: %w", err))
	}
	return name
}

// checkOutputs refuses a name that comes twice: of two such outputs Nix takes
// the first, and what is checked here must be what is built there.
func (c *conn) checkOutputs(outputs []nix.DerivationOutput) {
	seen := make(map[string]bool, len(outputs))
	for _, o := range outputs {
		if seen[o.Name] {
			c.r.Fail(fmt.Errorf("output %q comes twice", o.Name))
		}
		seen[o.Name] = true
	}
}

// readBuildMode reads what a build is for.
func (c *conn) readBuildMode() nix.BuildMode {
	n := c.r.Uint8()
	mode, err := nix.ParseBuildMode(n)
	if err != nil {
		c.r.Fail(err)
	}
	return mode
}
