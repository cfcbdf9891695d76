package worker

import (
	"context"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// narFromPath sends the NAR raw behind stderrLast. What goes wrong from there on
// can only be told by ending the session.
func (q *request) narFromPath() (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	src, err := q.store.NarFromPath(q.ctx, path)
	if err != nil {
		err = wire.NotValid(path, err)
		if q.version < sinceNarErrors {
			q.aborted = err // or the client would wait for the NAR
		}
		return nil, err
	}
	q.log.close()
	q.w.Uint64(stderrLast)
	q.answered = true
	if err := wire.SendNar(q.w, src); err != nil {
		err = fmt.Errorf("send NAR of %s: %w", path, err)
		q.report(err)
		q.aborted = err
	}
	return nil, nil
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
		return nil, fmt.Errorf("NAR of %s: %w", path, notFound(k.End(err)))
	}
	return k.ReadNar(c.limits.NarSize), nil
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
