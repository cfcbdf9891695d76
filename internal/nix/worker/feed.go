package worker

import (
	"context"
	"errors"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// feed is an operation with a framed upload: it writes the request's fields,
// then what send puts into the feeder, while it relays the log and looks out
// for an early error; then it reads the reply's fields. A daemon that logs much
// while it does not read would otherwise block both ends.
func (c *Client) feed(ctx context.Context, op Op, log nix.Logger, write func(), send func(*feeder) error, read func()) error {
	k, err := c.begin(ctx, op)
	if err != nil {
		return err
	}
	c.w.Uint64(uint64(op))
	write()
	up := c.newFeeder(log)
	sendErr := up.run(send)
	<-up.replied
	return c.endFeed(k, up, sendErr, read)
}

// endFeed says which of the errors of both directions is the one to tell.
func (c *Client) endFeed(k *wire.Call, up *feeder, sendErr error, read func()) error {
	var remote *nix.RemoteError
	switch {
	case errors.As(up.reply, &remote):
		if sendErr != nil && sendErr != errStopped {
			c.sever() // the terminator did not get through
		}
		return k.End(up.reply)
	case up.srcErr != nil && !k.Canceled():
		return k.Abandon(up.srcErr)
	case sendErr == errStopped && up.reply == nil:
		return k.End(errEarlyReply)
	case up.reply != nil:
		return k.End(up.reply)
	case sendErr != nil:
		return k.End(sendErr)
	}
	if read != nil {
		read()
	}
	return k.End(c.r.Err())
}

var (
	// errStopped says that the daemon had answered before all was sent.
	errStopped    = errors.New("upload stopped by the daemon")
	errEarlyReply = errors.New("daemon replied before the end of the upload")
)

// feeder sends the payload of an upload in frames.
type feeder struct {
	c      *Client
	frames *wire.FrameWriter
	// srcErr is an error of what was to be sent, not of the sending.
	srcErr error

	replied chan struct{} // closed when reply is set
	reply   error
}

// newFeeder starts to wait for the daemon's reply. Who makes one waits for
// replied to be closed.
func (c *Client) newFeeder(log nix.Logger) *feeder {
	up := &feeder{c: c, frames: wire.NewFrameWriter(c.w), replied: make(chan struct{})}
	go func() {
		defer close(up.replied)
		up.reply = c.awaitReply(reply{log: log})
		var remote *nix.RemoteError
		if up.reply != nil && !errors.As(up.reply, &remote) {
			c.sever() // so that the sending ends too
		}
	}()
	return up
}

// run sends everything, or stops and ends the frames if the daemon has answered.
func (up *feeder) run(send func(*feeder) error) error {
	err := send(up)
	if err == nil && up.stopped() {
		err = errStopped
	}
	switch {
	case err == nil:
		return up.frames.Close()
	case errors.Is(err, errStopped):
		if abortErr := up.frames.Abort(); abortErr != nil {
			return abortErr
		}
		return errStopped
	}
	up.c.sever() // nothing else ends half an upload
	return err
}

func (up *feeder) stopped() bool {
	select {
	case <-up.replied:
		return true
	default:
		return false
	}
}

// Write adds to the payload.
func (up *feeder) Write(p []byte) (int, error) {
	if up.stopped() {
		return 0, errStopped
	}
	return up.frames.Write(p)
}

// feedPiece is how much is sent between two looks for an early reply.
const feedPiece = 1 << 20

// ReadFrom adds all of src to the payload.
func (up *feeder) ReadFrom(src io.Reader) (int64, error) {
	var total int64
	for !up.stopped() {
		n, err := up.frames.ReadFrom(&io.LimitedReader{R: &sourceReader{up: up, src: src}, N: feedPiece})
		total += n
		if err != nil || n < feedPiece {
			return total, err
		}
	}
	return total, errStopped
}

// sourceReader remembers an error of the source, to keep it apart from one of
// the connection.
type sourceReader struct {
	up  *feeder
	src io.Reader
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.src.Read(p)
	if err != nil && err != io.EOF {
		err = s.up.sourceError(err)
	}
	return n, err
}

func (up *feeder) sourceError(err error) error {
	up.srcErr = err
	return err
}

// copyNar sends a NAR, which must have the announced size.
func (up *feeder) copyNar(info *nix.PathInfo, nar io.Reader) error {
	n, err := up.ReadFrom(nar)
	if up.srcErr != nil {
		return up.sourceError(fmt.Errorf("read NAR of %s: %w", info.Path, up.srcErr))
	}
	if err != nil {
		return err
	}
	if uint64(n) != info.NarSize {
		return up.sourceError(fmt.Errorf("NAR of %s has %d bytes, announced are %d", info.Path, n, info.NarSize))
	}
	return nil
}
