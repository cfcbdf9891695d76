package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// narBuffers holds what NARs are copied through, so that a session between two
// of them holds none.
var narBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// narFromPath sends the NAR raw behind stderrLast. What goes wrong from there on
// can only be told by ending the session.
func (q *request) narFromPath() (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	src, err := q.store.NarFromPath(q.ctx, path)
	if err != nil {
		return nil, notValid(path, err)
	}
	q.log.close()
	q.w.Uint64(stderrLast)
	q.answered = true
	if err := q.copyNar(src); err != nil {
		err = fmt.Errorf("send NAR of %s: %w", path, err)
		q.report(err)
		q.aborted = err
	}
	return nil, nil
}

func (q *request) copyNar(src io.ReadCloser) error {
	buf := narBuffers.Get().(*[64 << 10]byte)
	defer narBuffers.Put(buf)
	// The wrappers keep the size of the pieces: neither side's shortcut is asked.
	_, err := io.CopyBuffer(struct{ io.Writer }{q.w}, struct{ io.Reader }{src}, buf[:])
	return errors.Join(err, src.Close())
}

// NarFromPath implements [nix.Store]. The end of the NAR is found by its
// grammar, so broken bytes end the session. Closing the reader before io.EOF
// ends it too, as does the end of ctx.
func (c *Client) NarFromPath(ctx context.Context, path nix.StorePath) (io.ReadCloser, error) {
	k, err := c.begin(ctx, opNarFromPath)
	if err != nil {
		return nil, err
	}
	err = c.exchange(opNarFromPath, reply{log: c.log}, func() { c.w.StorePath(path) }, nil)
	if err == nil {
		err = c.lateError()
	}
	if err != nil {
		return nil, fmt.Errorf("NAR of %s: %w", path, notFound(k.end(err)))
	}
	return &narReader{call: k, src: nar.NewReader(c.r), limit: c.limits.NarSize}, nil
}

// lateError looks at the beginning of a NAR: a daemon that lacks the path says
// so there, where a NAR should stand, and closes.
func (c *Client) lateError() error {
	if c.r.PeekUint64() != stderrError {
		return c.r.Err()
	}
	c.r.Uint64()
	e := c.readError()
	c.sever()
	if c.r.Err() != nil {
		return c.r.Err()
	}
	return e
}

// narReader reads a NAR off the session.
type narReader struct {
	call  *call
	src   *nar.Reader
	limit uint64
	err   error // io.EOF once the session is free again
}

func (n *narReader) Read(p []byte) (int, error) {
	if n.err != nil {
		return 0, n.err
	}
	got, err := n.src.Read(p)
	if err == nil && n.src.Size() > n.limit {
		err = fmt.Errorf("NAR is larger than %d bytes", n.limit)
	}
	if err != nil {
		n.end(err)
		if got > 0 && n.err == io.EOF {
			return got, nil
		}
	}
	return got, n.err
}

func (n *narReader) end(err error) {
	if err == io.EOF {
		n.err = io.EOF
		err = nil
	}
	if err := n.call.end(err); err != nil {
		n.err = err
	}
}

// Close frees the session if the NAR was read to its end, and else breaks it.
func (n *narReader) Close() error {
	if n.err == nil && n.src.Done() {
		n.end(io.EOF)
	}
	if n.err == nil {
		n.err = n.call.abandon(errors.New("NAR was closed before its end"))
	}
	return nil
}
