package worker

import (
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// maxDerivedPath holds a path and many names of outputs.
const maxDerivedPath = maxString

// readDerivedPath reads a target. Before 1.30 a bare derivation stood for all
// its outputs, and there was no way to ask for the .drv file itself.
func (c *conn) readDerivedPath() nix.DerivedPath {
	text := c.r.String(maxDerivedPath)
	if c.r.Err() != nil {
		return nix.DerivedPath{}
	}
	target, err := nix.ParseDerivedPath(text)
	if err != nil {
		c.r.Fail(err)
		return nix.DerivedPath{}
	}
	if c.version < sinceDerivedPaths && target.Path.IsDerivation() {
		target.Built = true
	}
	return target
}

func (c *conn) writeDerivedPath(target nix.DerivedPath) {
	if c.version < sinceDerivedPaths && target.Built && len(target.Outputs) == 0 {
		target.Built = false
	}
	c.w.String(target.String())
}

func (c *conn) readDerivedPaths() []nix.DerivedPath {
	return wire.List(c.r, c.limits.Paths, c.readDerivedPath)
}

func (c *conn) writeDerivedPaths(targets []nix.DerivedPath) {
	c.w.Uint64(uint64(len(targets)))
	for _, target := range targets {
		c.writeDerivedPath(target)
	}
}

// canName reports a target that the agreed version has no words for.
func (c *conn) canName(targets []nix.DerivedPath) error {
	for _, t := range targets {
		if c.version < sinceDerivedPaths && !t.Built && t.Path.IsDerivation() {
			return fmt.Errorf("daemon of protocol %s cannot be asked for the derivation %s itself", c.version, t.Path)
		}
	}
	return nil
}
