package serve

import (
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// Codec reads and writes the parts of messages outside a session, for those who
// have them as bytes: golden data and recordings. Every Read has a Write beside
// it that takes the same value. Errors are those of R and W, which are there for
// what lies between; W must be flushed.
type Codec struct {
	R *wire.Reader
	W *wire.Writer

	conn conn
}

// NewCodec returns a codec that speaks a version. It has the default [Limits],
// and no more than one message's share of memory for all that it reads.
func NewCodec(r io.Reader, w io.Writer, version Version) *Codec {
	c := &Codec{R: wire.NewReader(r), W: wire.NewWriter(w)}
	c.conn = conn{r: c.R, w: c.W, dialect: dialect{version: version}, limits: Limits{}.WithDefaults()}
	c.conn.readMessage()
	return c
}

// ReadPathInfo reads an info as replies have it, without its path.
func (c *Codec) ReadPathInfo() *nix.PathInfo { return c.conn.readPathInfo(nix.StorePath{}) }

// WritePathInfo writes an info as replies have it, without its path.
func (c *Codec) WritePathInfo(info *nix.PathInfo) { c.conn.writePathInfo(info) }

// ReadBuildOptions reads what a client asks of a build.
func (c *Codec) ReadBuildOptions() BuildOptions { return c.conn.readBuildOptions() }

// WriteBuildOptions writes what a client asks of a build.
func (c *Codec) WriteBuildOptions(o BuildOptions) { c.conn.writeBuildOptions(o) }

// ReadBuildResult reads how a build ended.
func (c *Codec) ReadBuildResult() *nix.BuildResult { return c.conn.readBuildResult() }

// WriteBuildResult writes how a build ended.
func (c *Codec) WriteBuildResult(r *nix.BuildResult) { c.conn.writeBuildResult(r) }

// ReadUpload reads the path info before the NAR of an upload.
func (c *Codec) ReadUpload() *nix.PathInfo { return c.R.ValidPathInfo(c.conn.limits.NarSize) }

// ReadDerivation reads a derivation whose inputs are flattened.
func (c *Codec) ReadDerivation() *nix.BasicDerivation { return c.R.Derivation(c.conn.limits.Paths) }
