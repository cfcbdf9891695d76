package worker

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

// NewCodec returns a codec that speaks a version with the given features, which
// may be older than what a session agrees on. It has the default [Limits], and
// no more than one message's share of memory for all that it reads.
func NewCodec(r io.Reader, w io.Writer, version Version, features ...string) *Codec {
	c := &Codec{R: wire.NewReader(r), W: wire.NewWriter(w)}
	c.conn = conn{r: c.R, w: c.W, dialect: dialect{version: version, features: features}, limits: Limits{}.WithDefaults()}
	c.conn.readMessage()
	return c
}

// ReadValidPathInfo reads a path with its info.
func (c *Codec) ReadValidPathInfo() *nix.PathInfo { return c.conn.readValidPathInfo() }

// WriteValidPathInfo writes a path with its info.
func (c *Codec) WriteValidPathInfo(info *nix.PathInfo) { c.W.ValidPathInfo(info) }

// ReadPathInfo reads an info without its path, which stays zero.
func (c *Codec) ReadPathInfo() *nix.PathInfo { return c.conn.readPathInfo(nix.StorePath{}) }

// WritePathInfo writes an info without its path.
func (c *Codec) WritePathInfo(info *nix.PathInfo) { c.W.PathInfo(info) }

// ReadContentAddress reads a content address; zero for none.
func (c *Codec) ReadContentAddress() nix.ContentAddress { return c.R.ContentAddress() }

// WriteContentAddress writes a content address, "" for none.
func (c *Codec) WriteContentAddress(ca nix.ContentAddress) { c.W.String(ca.String()) }

// ReadDerivedPath reads what a client asks to have.
func (c *Codec) ReadDerivedPath() nix.DerivedPath { return c.conn.readDerivedPath() }

// WriteDerivedPath writes what a client asks to have.
func (c *Codec) WriteDerivedPath(target nix.DerivedPath) { c.conn.writeDerivedPath(target) }

// ReadDerivation reads a derivation whose inputs are flattened.
func (c *Codec) ReadDerivation() *nix.BasicDerivation { return c.conn.readDerivation() }

// WriteDerivation writes a derivation whose inputs are flattened.
func (c *Codec) WriteDerivation(drv *nix.BasicDerivation) { c.W.Derivation(drv) }

// ReadBuildMode reads what a build is for.
func (c *Codec) ReadBuildMode() nix.BuildMode { return c.conn.readBuildMode() }

// WriteBuildMode writes what a build is for.
func (c *Codec) WriteBuildMode(mode nix.BuildMode) { c.W.Uint64(uint64(mode)) }

// ReadTrust reads what a server thinks of its client.
func (c *Codec) ReadTrust() nix.Trust { return c.conn.readTrust() }

// WriteTrust writes what a server thinks of its client.
func (c *Codec) WriteTrust(trust nix.Trust) { c.W.Uint64(uint64(trust)) }

// ReadBuildResult reads how a build ended.
func (c *Codec) ReadBuildResult() *nix.BuildResult { return c.conn.readBuildResult() }

// WriteBuildResult writes how a build ended.
func (c *Codec) WriteBuildResult(r *nix.BuildResult) { c.conn.writeBuildResult(r) }

// ReadKeyedBuildResult reads a target and how its build ended.
func (c *Codec) ReadKeyedBuildResult() nix.KeyedBuildResult { return c.conn.readKeyedResult() }

// WriteKeyedBuildResult writes a target and how its build ended.
func (c *Codec) WriteKeyedBuildResult(r nix.KeyedBuildResult) { c.conn.writeKeyedResult(r) }

// ReadMissing reads what realising targets takes.
func (c *Codec) ReadMissing() *nix.Missing { return c.conn.readMissing() }

// WriteMissing writes what realising targets takes.
func (c *Codec) WriteMissing(m *nix.Missing) { c.conn.writeMissing(m) }

// ReadOutputMap reads the outputs of a derivation.
func (c *Codec) ReadOutputMap() map[string]nix.StorePath { return c.conn.readOutputMap() }

// WriteOutputMap writes the outputs of a derivation.
func (c *Codec) WriteOutputMap(outputs map[string]nix.StorePath) { c.conn.writeOutputMap(outputs) }

// ReadDrvOutput reads the id of an output.
func (c *Codec) ReadDrvOutput() nix.DrvOutput { return c.conn.readDrvOutput() }

// WriteDrvOutput writes the id of an output.
func (c *Codec) WriteDrvOutput(id nix.DrvOutput) { c.conn.writeDrvOutput(id) }

// ReadRealisation reads a realisation as RegisterDrvOutput carries it.
func (c *Codec) ReadRealisation() nix.Realisation { return c.conn.readRealisation() }

// WriteRealisation writes a realisation as RegisterDrvOutput carries it.
func (c *Codec) WriteRealisation(r nix.Realisation) { c.conn.writeRealisation(r) }

// ReadFoundRealisation reads the answer to QueryRealisation; nil if there is none.
func (c *Codec) ReadFoundRealisation() *nix.Realisation { return c.conn.readFound(nix.DrvOutput{}) }

// WriteFoundRealisation writes the answer to QueryRealisation.
func (c *Codec) WriteFoundRealisation(r *nix.Realisation) { c.conn.writeFound(r) }

// ReadReply reads the log of an operation up to its reply's fields. The error is
// a [nix.RemoteError] if the server answers with one.
func (c *Codec) ReadReply(log nix.Logger) error {
	client := Client{conn: c.conn}
	return client.awaitReply(reply{log: log})
}

// ReadFeatures reads the features that a peer offers.
func (c *Codec) ReadFeatures() []string { return c.conn.readFeatures() }
