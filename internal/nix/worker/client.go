package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
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
	o.Limits = o.Limits.withDefaults()
	return o
}

// ConnError says that a daemon's session broke: the connection was lost, or the
// daemon sent something that the protocol does not have. An operation that fails
// otherwise was refused by the daemon, which is a [nix.RemoteError].
type ConnError struct {
	// Op is what the session was doing.
	Op string
	// Corrupt says that bytes came which make no sense, instead of none.
	Corrupt bool
	Err     error
}

func (e *ConnError) Error() string {
	if e.Corrupt {
		return fmt.Sprintf("daemon session broken in %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("daemon session lost in %s: %v", e.Op, e.Err)
}

func (e *ConnError) Unwrap() error { return e.Err }

func connError(op string, err error) error {
	var known *ConnError
	if errors.As(err, &known) {
		return err
	}
	var archive *nar.SyntaxError
	return &ConnError{Op: op, Corrupt: wire.IsFormat(err) || errors.As(err, &archive), Err: err}
}

// Client is a session with a daemon. As the protocol has it, one operation runs
// at a time; Close alone may be called at any time. An operation whose context
// ends closes the connection, since there is no other way to stop it.
type Client struct {
	conn
	rwc io.ReadWriteCloser
	log nix.Logger // of operations that have none of their own

	daemonVersion string
	trust         nix.Trust
	// namesByPath says that the daemon knows FeatureRealisationPaths: without
	// the feature in force it leaves a session about realisations out of step.
	namesByPath bool

	busy   bool        // an operation or the reader of a NAR is under way
	broken atomic.Bool // the session is not at the border of an operation
}

var (
	_ nix.Store            = (*Client)(nil)
	_ nix.TempRooter       = (*Client)(nil)
	_ nix.MissingQuerier   = (*Client)(nil)
	_ nix.OutputMapper     = (*Client)(nil)
	_ nix.PathFinder       = (*Client)(nil)
	_ nix.PathLister       = (*Client)(nil)
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
	c := &Client{rwc: rwc, log: opts.Log}
	c.r, c.w = wire.NewReader(rwc), wire.NewWriter(rwc)
	c.limits = opts.Limits
	c.readMessage()
	stop := context.AfterFunc(ctx, c.sever)
	err := c.handshake(opts)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.sever()
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
	return connError("the handshake", err)
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
func (c *Client) Reusable() bool {
	return !c.busy && !c.broken.Load() && c.r.Err() == nil && c.w.Err() == nil && c.r.Buffered() == 0
}

// Close ends the session. Between operations this is how it normally ends; an
// operation under way fails.
func (c *Client) Close() error {
	c.broken.Store(true)
	return c.rwc.Close()
}

// sever closes the connection because of an error that is told elsewhere.
func (c *Client) sever() { _ = c.Close() }

// call is one operation under way.
type call struct {
	c    *Client
	ctx  context.Context
	op   Op
	stop func() bool
}

var (
	errBroken = errors.New("session has ended before")
	errBusy   = errors.New("another operation is under way")
)

// begin starts an operation. Every begin has its end.
func (c *Client) begin(ctx context.Context, op Op) (*call, error) {
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", op, ctx.Err())
	case c.broken.Load():
		return nil, connError(op.String(), errBroken)
	case c.busy:
		return nil, fmt.Errorf("%s: %w", op, errBusy)
	}
	c.busy = true
	return &call{c: c, ctx: ctx, op: op, stop: context.AfterFunc(ctx, c.sever)}, nil
}

// end ends the operation and names its error: that of the context if it ended,
// the daemon's, or one of the connection.
func (k *call) end(err error) error {
	k.stop()
	k.c.busy = false
	var remote *nix.RemoteError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &remote) && k.c.r.Err() == nil:
		return err
	case k.ctx.Err() != nil:
		k.c.sever()
		return fmt.Errorf("%s: %w", k.op, k.ctx.Err())
	}
	k.c.sever()
	return connError(k.op.String(), err)
}

// abandon ends the operation with an error that is not the daemon's fault and
// leaves the session in the middle of something.
func (k *call) abandon(err error) error {
	k.stop()
	k.c.busy = false
	k.c.sever()
	return err
}

// do is an operation without an upload: write the request's fields, relay the
// log, read the reply's. Either function may be nil.
func (c *Client) do(ctx context.Context, op Op, log nix.Logger, write, read func()) error {
	k, err := c.begin(ctx, op)
	if err != nil {
		return err
	}
	return k.end(c.exchange(op, reply{log: log}, write, read))
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
