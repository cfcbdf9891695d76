package worker

import (
	"fmt"

	"nixbastion/internal/nix"
)

// readValidPathInfo reads a path with its info. Uploads in AddMultipleToStore
// have the same form in every version.
func (c *conn) readValidPathInfo() *nix.PathInfo {
	path := c.r.StorePath()
	return c.readPathInfo(path)
}

func (c *conn) writeValidPathInfo(info *nix.PathInfo) {
	c.w.StorePath(info.Path)
	c.writePathInfo(info)
}

// readPathInfo reads the info of a path that is known already.
func (c *conn) readPathInfo(path nix.StorePath) *nix.PathInfo {
	info := &nix.PathInfo{Path: path}
	info.Deriver = c.r.OptionalStorePath()
	info.NarHash = c.readNarHash()
	info.References = c.r.StorePaths(maxReferences)
	info.RegistrationTime = c.r.Int64()
	info.NarSize = c.readNarSize()
	info.Ultimate = c.r.Bool()
	info.Sigs = c.readSigs()
	info.CA = c.readContentAddress()
	return info
}

func (c *conn) writePathInfo(info *nix.PathInfo) {
	c.w.StorePath(info.Deriver)
	c.w.String(info.NarHash.Base16())
	c.w.StorePaths(info.References)
	c.w.Int64(info.RegistrationTime)
	c.w.Uint64(info.NarSize)
	c.w.Bool(info.Ultimate)
	c.writeSigs(info.Sigs)
	c.w.String(info.CA.String())
}

// readNarHash takes every encoding, as Nix does; it must be a SHA-256.
func (c *conn) readNarHash() nix.Hash {
	text := c.r.String(maxString)
	if c.r.Err() != nil {
		return nix.Hash{}
	}
	hash, err := nix.ParseHash(text, nix.SHA256)
	if err != nil {
		c.r.Fail(fmt.Errorf("NAR %w", err))
	}
	return hash
}

func (c *conn) readNarSize() uint64 {
	size := c.r.Uint64()
	if size > c.limits.NarSize {
		c.r.Fail(fmt.Errorf("expected a NAR of at most %d bytes, got %d", c.limits.NarSize, size))
	}
	return size
}

// readSigs drops signatures that are malformed: Nix 2.34 and newer would refuse
// the whole path for one that is passed on.
func (c *conn) readSigs() []nix.Signature {
	var sigs []nix.Signature
	for _, text := range c.r.StringSet(maxSigs, maxString) {
		if sig, err := nix.ParseSignature(text); err == nil {
			sigs = append(sigs, sig)
		}
	}
	return sigs
}

func (c *conn) writeSigs(sigs []nix.Signature) {
	texts := make([]string, len(sigs))
	for i, sig := range sigs {
		texts[i] = sig.String()
	}
	c.w.StringSet(texts)
}

func (c *conn) readContentAddress() nix.ContentAddress {
	text := c.r.String(maxString)
	if c.r.Err() != nil {
		return nix.ContentAddress{}
	}
	ca, err := nix.ParseContentAddress(text)
	if err != nil {
		c.r.Fail(err)
	}
	return ca
}
