package worker

import (
	"context"
	"errors"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// ClientOptions say how a client presents itself.
type ClientOptions struct {
	// Version is the newest version to speak. Zero means Latest.
	Version Version
	// MinVersion is the oldest version taken of a daemon. Zero means 1.32, that
	// of Nix 2.4: older ones have no upload of several paths at once.
	MinVersion Version
	// Features are offered to daemons of 1.38. None by default.
	Features []string
	// Limits bound what the daemon may send.
	Limits Limits
	// Log takes what the daemon says in the handshake and in operations that
	// have no log of their own. Nil drops it.
	Log nix.Logger
}

func (o ClientOptions) withDefaults() ClientOptions {
	if o.Version == 0 {
		o.Version = Latest
	}
	if o.MinVersion == 0 {
		o.MinVersion = sinceAddMultipleToStore
	}
	if o.Log == nil {
		o.Log = nix.Discard
	}
	o.Limits = o.Limits.WithDefaults()
	return o
}

// ConnError says that a daemon's session broke: the connection was lost, or the
// daemon sent something that the protocol does not have. An operation that fails
// otherwise was refused by the daemon, which is a [nix.RemoteError].
type ConnError = wire.ConnError

// Client is a session with a daemon. As the protocol has it, one operation runs
// at a time; Close alone may be called at any time. An operation whose context
// ends closes the connection, since there is no other way to stop it.
type Client struct {
	conn
	caller *wire.Caller
	log    nix.Logger // of operations that have none of their own

	daemonVersion string
	trust         nix.Trust
	// namesByPath says that the daemon knows FeatureRealisationPaths: without
	// the feature in force it leaves a session about realisations out of step.
	namesByPath bool
}

var (
	_ nix.Store            = (*Client)(nil)
	_ nix.TempRooter       = (*Client)(nil)
	_ nix.MissingQuerier   = (*Client)(nil)
	_ nix.OutputMapper     = (*Client)(nil)
	_ nix.PathFinder       = (*Client)(nil)
	_ nix.PathLister       = (*Client)(nil)
	_ nix.PathWalker       = (*Client)(nil)
	_ nix.SignatureAdder   = (*Client)(nil)
	_ nix.RealisationStore = (*Client)(nil)
	_ nix.OptionSetter     = (*Client)(nil)
)

// NewClient shakes hands with the daemon at the other end of rwc, which the
// client then owns; on an error it is closed. Errors beside those of the
// connection are [MismatchError], [VersionError] and, if the daemon refuses,
// [nix.RemoteError].
func NewClient(ctx context.Context, rwc io.ReadWriteCloser, opts ClientOptions) (*Client, error) {
	opts = opts.withDefaults()
	c := &Client{caller: wire.NewCaller(rwc), log: opts.Log}
	c.r, c.w = c.caller.R, c.caller.W
	c.limits = opts.Limits
	c.readMessage()
	if err := c.caller.Shake(ctx, func() error { return c.handshake(opts) }); err != nil {
		return nil, fmt.Errorf("shake hands with the daemon: %w", asHandshakeError(err))
	}
	return c, nil
}

func asHandshakeError(err error) error {
	var mismatch *MismatchError
	var version *VersionError
	var remote *nix.RemoteError
	if errors.As(err, &mismatch) || errors.As(err, &version) || errors.As(err, &remote) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return wire.NewConnError("the handshake", err)
}

// Version returns the version agreed on.
func (c *Client) Version() Version { return c.version }

// DaemonVersion returns the version of Nix that the daemon names, "" for one
// older than 2.7. Over ssh it is that of the nix-daemon program in the account's
// PATH, which need not be that of the running daemon.
func (c *Client) DaemonVersion() string { return c.daemonVersion }

// Trust returns what the daemon thinks of the account; TrustUnknown from those
// older than 2.15.
func (c *Client) Trust() nix.Trust { return c.trust }

// Reusable reports whether the session is exactly between two operations: not
// closed, nothing under way, nothing broken, and no byte waiting that nobody
// asked for.
func (c *Client) Reusable() bool { return c.caller.Reusable() }

// Close ends the session. Between operations this is how it normally ends; an
// operation under way fails.
func (c *Client) Close() error { return c.caller.Close() }

// begin starts an operation. Every begin has its End.
func (c *Client) begin(ctx context.Context, op Op) (*wire.Call, error) {
	return c.caller.Begin(ctx, op.String())
}

// sever closes the connection because of an error that is told elsewhere.
func (c *Client) sever() { c.caller.Sever() }

// do is an operation without an upload: write the request's fields, relay the
// log, read the reply's. Either function may be nil.
func (c *Client) do(ctx context.Context, op Op, log nix.Logger, write, read func()) error {
	k, err := c.begin(ctx, op)
	if err != nil {
		return err
	}
	return k.End(c.exchange(op, reply{log: log}, write, read))
}

func (c *Client) exchange(op Op, rep reply, write, read func()) error {
	c.w.Uint64(uint64(op))
	if write != nil {
		write()
	}
	if err := c.w.Flush(); err != nil {
		return err
	}
	if err := c.awaitReply(rep); err != nil {
		return err
	}
	if read != nil {
		read()
	}
	return c.r.Err()
}

// reply says what happens on the way to a reply.
type reply struct {
	log nix.Logger
	// pull answers a daemon that asks for the next piece of an upload, at most
	// limit bytes. Nil if there is none to ask for.
	pull func(limit uint64) error
}

// awaitReply reads the log up to the reply's fields. An error of the daemon is a
// nix.RemoteError.
func (c *Client) awaitReply(rep reply) error {
	for {
		c.readMessage()
		kind := c.r.Uint64()
		if err := c.r.Err(); err != nil {
			return err
		}
		if kind == stderrLast {
			return nil
		}
		if err := c.handleMessage(kind, rep); err != nil {
			return err
		}
	}
}

func (c *Client) handleMessage(kind uint64, rep reply) error {
	switch {
	case kind == stderrError:
		e := c.readError()
		if c.r.Err() != nil {
			return c.r.Err()
		}
		return e
	case kind == stderrRead && rep.pull != nil:
		limit := c.r.Uint64()
		if c.r.Err() != nil {
			return c.r.Err()
		}
		return rep.pull(limit)
	}
	m := c.readLog(kind)
	if c.r.Err() == nil {
		rep.log.Log(m)
	}
	return c.r.Err()
}

// needs refuses an operation that the daemon is too old for.
func (c *Client) needs(op Op, since Version) error {
	if c.version < since {
		return fmt.Errorf("%s: daemon speaks protocol %s, which has it since %s", op, c.version, since)
	}
	return nil
}
