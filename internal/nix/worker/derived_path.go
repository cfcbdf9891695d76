package worker

import (
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readDerivedPath reads a target.
func (c *conn) readDerivedPath() nix.DerivedPath {
	if c.version < sinceDerivedPaths {
		return c.r.OldDerivedPath()
	}
	return c.r.DerivedPath()
}

func (c *conn) writeDerivedPath(target nix.DerivedPath) {
	if c.version < sinceDerivedPaths {
		c.w.OldDerivedPath(target)
		return
	}
	c.w.DerivedPath(target)
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
