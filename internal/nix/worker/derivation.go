package worker

import "nixbastion/internal/nix"

// readDerivation reads a derivation with its inputs flattened.
func (c *conn) readDerivation() *nix.BasicDerivation { return c.r.Derivation(c.limits.Paths) }

// readBuildMode reads what a build is for.
func (c *conn) readBuildMode() nix.BuildMode {
	n := c.r.Uint8()
	mode, err := nix.ParseBuildMode(n)
	if err != nil {
		c.r.Fail(err)
	}
	return mode
}
