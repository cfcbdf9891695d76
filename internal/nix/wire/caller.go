package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// ErrHangUp says that a client went away while an operation ran for it.
var ErrHangUp = errors.New("client hung up")

// MismatchError says that a peer which should be a daemon sent something else:
// mostly the text of a shell or a login message.
type MismatchError struct {
	// Got is the beginning of it.
	Got string
}

func (e *MismatchError) Error() string { return fmt.Sprintf("protocol mismatch, got %q", e.Got) }

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

// NewConnError makes a ConnError of what went wrong, unless it is one.
func NewConnError(op string, err error) error {
	var known *ConnError
	if errors.As(err, &known) {
		return err
	}
	var archive *nar.SyntaxError
	return &ConnError{Op: op, Corrupt: IsFormat(err) || errors.As(err, &archive), Err: err}
}

// Caller is the asking end of a session: the connection, on which one operation
// runs at a time. Close alone may be called at any time. An operation whose
// context ends closes the connection, since there is no other way to stop it.
type Caller struct {
	R *Reader
	W *Writer

	stream io.ReadWriteCloser
	busy   bool        // an operation or the reader of a NAR is under way
	broken atomic.Bool // the session is not at the border of an operation
}

// NewCaller returns the asking end of a stream, which it owns from now on.
func NewCaller(stream io.ReadWriteCloser) *Caller {
	return &Caller{R: NewReader(stream), W: NewWriter(stream), stream: stream}
}

// Reusable reports whether the session is exactly between two operations: not
// closed, nothing under way, nothing broken, and no byte waiting that nobody
// asked for.
func (c *Caller) Reusable() bool {
	return !c.busy && !c.broken.Load() && c.R.Err() == nil && c.W.Err() == nil && c.R.Buffered() == 0
}

// Close ends the session. Between operations this is how it normally ends; an
// operation under way fails.
func (c *Caller) Close() error {
	c.broken.Store(true)
	return c.stream.Close()
}

// Sever closes the connection because of an error that is told elsewhere.
func (c *Caller) Sever() { _ = c.Close() }

// Shake shakes hands. On an error, that of ctx if it ended, the connection is
// closed.
func (c *Caller) Shake(ctx context.Context, hands func() error) error {
	stop := context.AfterFunc(ctx, c.Sever)
	err := hands()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Sever()
	}
	return err
}

// greetingTime is how long a peer that is no daemon may take to finish what it
// says.
const greetingTime = time.Second

// ReadMagic reads the number with which the peer's half of a handshake begins.
// What came instead, up to its end, is a [MismatchError].
func (c *Caller) ReadMagic(want uint64) error {
	if c.R.PeekUint64() == want {
		c.R.Uint64()
		return nil
	}
	limit := time.AfterFunc(greetingTime, c.Sever)
	defer limit.Stop()
	if got := c.R.Rest(maxGreeting); len(got) > 0 {
		return &MismatchError{Got: string(got)}
	}
	return c.R.Err()
}

// Call is one operation under way.
type Call struct {
	c    *Caller
	ctx  context.Context
	op   string
	stop func() bool
}

var (
	errBroken = errors.New("session has ended before")
	errBusy   = errors.New("another operation is under way")
)

// Begin starts an operation. Every Begin has its End.
func (c *Caller) Begin(ctx context.Context, op string) (*Call, error) {
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", op, ctx.Err())
	case c.broken.Load():
		return nil, NewConnError(op, errBroken)
	case c.busy:
		return nil, fmt.Errorf("%s: %w", op, errBusy)
	}
	c.busy = true
	return &Call{c: c, ctx: ctx, op: op, stop: context.AfterFunc(ctx, c.Sever)}, nil
}

// End ends the operation and names its error: that of the context if it ended,
// the peer's own, which is a [nix.RemoteError] and leaves the session usable, or
// one of the connection.
func (k *Call) End(err error) error {
	k.stop()
	k.c.busy = false
	var remote *nix.RemoteError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &remote) && k.c.R.Err() == nil:
		return err
	case k.ctx.Err() != nil:
		k.c.Sever()
		return fmt.Errorf("%s: %w", k.op, k.ctx.Err())
	}
	k.c.Sever()
	return NewConnError(k.op, err)
}

// Abandon ends the operation with an error that is not the peer's fault and
// leaves the session in the middle of something.
func (k *Call) Abandon(err error) error {
	k.stop()
	k.c.busy = false
	k.c.Sever()
	return err
}

// Canceled reports whether the operation's context ended.
func (k *Call) Canceled() bool { return k.ctx.Err() != nil }
