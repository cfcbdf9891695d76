package worker

import "nixbastion/internal/nix"

// readValidPathInfo reads a path with its info, which have the same form in every
// version.
func (c *conn) readValidPathInfo() *nix.PathInfo { return c.r.ValidPathInfo(c.limits.NarSize) }

// readPathInfo reads the info of a path that is known already.
func (c *conn) readPathInfo(path nix.StorePath) *nix.PathInfo {
	return c.r.PathInfo(path, c.limits.NarSize)
}
