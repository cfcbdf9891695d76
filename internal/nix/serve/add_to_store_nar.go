package serve

import (
	"context"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// addToStoreNar: a path info with the NAR behind it, which is exactly as long as
// the info says. Nothing is signed here.
func (q *request) addToStoreNar() (func() error, error) {
	info := q.r.ValidPathInfo(q.limits.NarSize)
	if q.r.Err() != nil {
		return nil, q.r.Err()
	}
	if info.NarSize == 0 {
		return nil, nix.Refuse("narInfo is too old and missing the narSize field")
	}
	return q.done, q.upload(info.NarSize, func(nar io.Reader) error {
		return q.store.AddMultipleToStore(q.ctx, q.log, wire.OnePath(info, nar), nix.AddOptions{DontCheckSigs: true})
	})
}

// upload lets use read so many bytes, and skips what it leaves of them. If it
// fails before their end the session is over: nobody could stop the client.
func (q *request) upload(size uint64, use func(io.Reader) error) error {
	p := &payload{request: q, left: size}
	q.log.setUploading(true)
	err := use(p)
	if err == nil {
		_, err = io.Copy(io.Discard, p)
	}
	return err
}

// payload is an upload as the store reads it. When the client has sent it all,
// or has gone, the command learns of it.
type payload struct {
	*request
	left uint64
}

func (p *payload) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n, err := p.r.Read(b[:min(uint64(len(b)), p.left)])
	p.left -= uint64(n)
	switch {
	case err != nil:
		p.hangUp()
	case p.left == 0:
		p.log.setUploading(false)
		p.watch()
	}
	return n, err
}

// AddMultipleToStore implements [nix.Store]. The paths go out one behind the
// other while the answers are read. Signatures are never checked, and a valid
// path is never repaired.
//
// A server that does not want a path ends the session, as an error of src does:
// an upload can be ended in no other way.
func (c *Client) AddMultipleToStore(ctx context.Context, _ nix.Logger, src nix.PathSource, opts nix.AddOptions) error {
	switch {
	case opts.Repair:
		return refuse("a repair")
	case src.Count == 0:
		return nil
	case c.version < sinceAddToStoreNar:
		return c.importPaths(ctx, src)
	}
	return c.send(ctx, cmdAddToStoreNar, src.Count, func(up *uploader) error {
		return up.each(src, func(info *nix.PathInfo, nar io.Reader) error {
			c.w.Uint64(uint64(cmdAddToStoreNar))
			c.w.ValidPathInfo(info)
			return up.copyNar(info, nar)
		})
	})
}

// send is a command with an upload, or several of the kind: it lets write say
// everything while it reads so many replies, each the number 1. A server that
// dies meanwhile would not end the writing by itself.
func (c *Client) send(ctx context.Context, cmd Command, replies uint64, write func(*uploader) error) error {
	k, err := c.begin(ctx, cmd)
	if err != nil {
		return err
	}
	up := c.newUploader(replies)
	sendErr := write(up)
	if sendErr == nil {
		sendErr = c.w.Flush()
	}
	if sendErr != nil {
		c.sever() // nothing else ends half an upload
	}
	<-up.replied
	switch {
	case up.srcErr != nil && !k.Canceled():
		return k.Abandon(up.srcErr)
	case up.reply != nil:
		return k.End(up.reply)
	}
	return k.End(sendErr)
}

// uploader sends paths.
type uploader struct {
	c *Client
	// srcErr is an error of what was to be sent, not of the sending.
	srcErr error

	replied chan struct{} // closed when reply is set
	reply   error
}

// newUploader starts to read replies. Who makes one waits for replied to be
// closed.
func (c *Client) newUploader(replies uint64) *uploader {
	up := &uploader{c: c, replied: make(chan struct{})}
	go func() {
		defer close(up.replied)
		if up.reply = c.readReplies(replies); up.reply != nil {
			c.sever() // so that the sending ends too
		}
	}()
	return up
}

func (c *Client) readReplies(n uint64) error {
	for range n {
		c.readMessage()
		c.r.Expect("that a path was added,", 1)
		if c.r.Err() != nil {
			break
		}
	}
	return c.r.Err()
}

// each hands out the paths of a source.
func (up *uploader) each(src nix.PathSource, send func(*nix.PathInfo, io.Reader) error) error {
	for range src.Count {
		info, nar, err := src.Next()
		if err != nil {
			return up.sourceError("read upload: %w", err)
		}
		if err := send(info, nar); err != nil {
			return err
		}
	}
	return nil
}

// copyNar sends a NAR, which must have the announced size.
func (up *uploader) copyNar(info *nix.PathInfo, nar io.Reader) error {
	n, err := wire.CopyNar(up.c.w, nar)
	switch {
	case up.c.w.Err() != nil:
		return up.c.w.Err()
	case err != nil:
		return up.sourceError("read NAR of %s: %w", info.Path, err)
	case uint64(n) != info.NarSize:
		return up.sourceError("NAR of %s has %d bytes, announced are %d", info.Path, n, info.NarSize)
	}
	return nil
}

func (up *uploader) sourceError(format string, args ...any) error {
	up.srcErr = fmt.Errorf(format, args...)
	return up.srcErr
}

// AddToStore implements [nix.Store] by refusing: servers name no content.
func (c *Client) AddToStore(context.Context, nix.Logger, nix.AddToStoreRequest, io.Reader) (*nix.PathInfo, error) {
	return nil, refuse("an addition without a path")
}
