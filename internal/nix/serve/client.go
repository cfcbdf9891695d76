package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// ClientOptions bound what a server may send.
type ClientOptions struct {
	Limits Limits
	// Builds is what the server is asked to keep builds within.
	Builds nix.BuildLimits

	// version is announced, least the oldest that is taken; zero means Announced
	// and 2.4, others are for tests. Servers before 2.4, which are older than
	// Nix 2.0, do not tell the hash of a NAR: nothing of theirs can be checked.
	version, least Version
}

func (o ClientOptions) withDefaults() ClientOptions {
	o.version = cmp.Or(o.version, Announced)
	o.least = cmp.Or(o.least, sinceNarHash)
	o.Limits = o.Limits.WithDefaults()
	return o
}

// Client is a session with a server. One command runs at a time; Close alone may
// be called at any time. A command whose context ends closes the connection,
// since there is no other way to stop it. So does a server that does not want to
// answer: every error of a command but nix.ErrNotFound is the end of the session
// or was found before anything was sent.
//
// What builds print, and why a session ended, comes on the server's standard
// error. Whoever owns the connection must always read that, or the server stops.
type Client struct {
	conn
	caller *wire.Caller
	builds BuildOptions
	rooted *rootedPaths // nil once something else was asked
}

var (
	_ nix.Store      = (*Client)(nil)
	_ nix.TempRooter = (*Client)(nil)
)

// NewClient shakes hands with the server at the other end of rwc, which the
// client then owns; on an error it is closed. Errors beside [ConnError] are
// [MismatchError], [VersionError] and that of ctx.
func NewClient(ctx context.Context, rwc io.ReadWriteCloser, opts ClientOptions) (*Client, error) {
	opts = opts.withDefaults()
	c := &Client{caller: wire.NewCaller(rwc), builds: optionsOf(opts.Builds)}
	c.r, c.w = c.caller.R, c.caller.W
	c.limits = opts.Limits
	c.readMessage()
	if err := c.caller.Shake(ctx, func() error { return c.handshake(opts) }); err != nil {
		return nil, fmt.Errorf("shake hands with the server: %w", asHandshakeError(err))
	}
	return c, nil
}

func asHandshakeError(err error) error {
	var mismatch *MismatchError
	var version *VersionError
	if errors.As(err, &mismatch) || errors.As(err, &version) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return wire.NewConnError("the handshake", err)
}

// Version returns the version agreed on.
func (c *Client) Version() Version { return c.version }

// Reusable reports whether the session is exactly between two commands: not
// closed, nothing under way, nothing broken, and no byte waiting that nobody
// asked for.
func (c *Client) Reusable() bool { return c.caller.Reusable() }

// Close ends the session. Between commands this is how it normally ends; a
// command under way fails.
func (c *Client) Close() error { return c.caller.Close() }

// begin starts a command. Every begin has its End.
func (c *Client) begin(ctx context.Context, cmd Command) (*wire.Call, error) {
	c.rooted = nil
	return c.caller.Begin(ctx, cmd.String())
}

// sever closes the connection because of an error that is told elsewhere.
func (c *Client) sever() { c.caller.Sever() }

// do is a command without an upload: write the request's fields, read the
// reply's.
func (c *Client) do(ctx context.Context, cmd Command, write, read func()) error {
	k, err := c.begin(ctx, cmd)
	if err != nil {
		return err
	}
	return k.End(c.exchange(cmd, write, read))
}

// exchange reads nothing if read is nil.
func (c *Client) exchange(cmd Command, write, read func()) error {
	c.readMessage()
	c.w.Uint64(uint64(cmd))
	write()
	if err := c.w.Flush(); err != nil {
		return err
	}
	if read != nil {
		read()
	}
	return c.r.Err()
}
