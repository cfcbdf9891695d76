package serve

import (
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readPathInfo reads the info of a path in a reply, which is another than that
// of an upload: it has the size twice, the hash with its algorithm, and no times.
func (c *conn) readPathInfo(path nix.StorePath) *nix.PathInfo {
	info := &nix.PathInfo{Path: path}
	info.Deriver = c.r.OptionalStorePath()
	info.References = c.r.StorePaths(wire.MaxReferences)
	c.r.Uint64() // what a download takes
	info.NarSize = c.r.NarSize(c.limits.NarSize)
	if c.version >= sinceNarHash {
		info.NarHash = c.r.PrefixedNarHash()
		info.CA = c.r.ContentAddress()
		info.Sigs = c.r.Sigs()
	}
	return info
}

func (c *conn) writePathInfo(info *nix.PathInfo) {
	c.w.StorePath(info.Deriver)
	c.w.StorePaths(info.References)
	c.w.Uint64(info.NarSize)
	c.w.Uint64(info.NarSize)
	if c.version >= sinceNarHash {
		c.w.String(info.NarHash.String())
		c.w.String(info.CA.String())
		c.w.Sigs(info.Sigs)
	}
}
