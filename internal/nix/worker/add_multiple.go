package worker

import (
	"context"
	"fmt"
	"io"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// addMultipleToStore: two flags, then frames that hold a count and as many
// times a path info with the NAR behind it.
func (q *request) addMultipleToStore() (func(), error) {
	opts := nix.AddOptions{Repair: q.r.Bool(), DontCheckSigs: q.r.Bool()}
	if q.r.Err() != nil {
		return nil, q.r.Err()
	}
	return nil, q.framed(func(payload io.Reader) error {
		entries := q.newEntries(payload)
		count := entries.Count(q.limits.Paths)
		if err := entries.Err(); err != nil {
			return fmt.Errorf("read the count of an upload: %w", cut(err, "before the count of its paths"))
		}
		src := nix.PathSource{Count: uint64(count), Next: entries.next}
		entries.left = count
		return q.store.AddMultipleToStore(q.ctx, q.log, src, opts)
	})
}

// entries reads the content of the frames.
type entries struct {
	*wire.Reader
	conn    conn // reads path infos out of the frames
	payload io.Reader
	left    int
	nar     *wire.SizedNar // of the entry handed out last
}

func (q *request) newEntries(payload io.Reader) *entries {
	r := wire.NewReader(payload)
	return &entries{Reader: r, conn: conn{r: r, dialect: q.dialect, limits: q.limits}, payload: payload}
}

// next hands out the next path, having skipped what is left of the NAR before it.
func (e *entries) next() (*nix.PathInfo, io.Reader, error) {
	if err := e.skip(); err != nil {
		return nil, nil, err
	}
	if e.left == 0 {
		return nil, nil, e.end()
	}
	e.left--
	e.conn.readMessage()
	info := e.conn.readValidPathInfo()
	if err := e.Err(); err != nil {
		return nil, nil, fmt.Errorf("read path info of an upload: %w", cut(err, "inside a path info"))
	}
	e.nar = wire.NewSizedNar(e.Reader, info)
	return info, e.nar, nil
}

func (e *entries) skip() error {
	if e.nar == nil {
		return nil
	}
	return e.nar.Skip()
}

// end returns io.EOF if nothing is left in the frames.
func (e *entries) end() error {
	if e.More() {
		e.Fail(fmt.Errorf("expected the end of the upload, got more bytes than were announced"))
	}
	if e.Err() != nil {
		return e.Err()
	}
	return io.EOF
}

// cut makes a sentence of frames that end too early.
func cut(err error, where string) error {
	if err == io.ErrUnexpectedEOF {
		return &nix.UserError{Message: "upload ends " + where, Err: err}
	}
	return err
}

// AddMultipleToStore implements [nix.Store]. Daemons before 1.32 get the paths
// one by one.
//
// A daemon mostly tells that it does not want the upload only when it has read
// all of it. If it does so earlier the rest is not sent. An error of src leaves
// an upload half sent, which only ends with the connection.
func (c *Client) AddMultipleToStore(ctx context.Context, log nix.Logger, src nix.PathSource, opts nix.AddOptions) error {
	if c.version < sinceAddMultipleToStore {
		return c.addEach(ctx, log, src, opts)
	}
	return c.feed(ctx, opAddMultipleToStore, log,
		func() {
			c.w.Bool(opts.Repair)
			c.w.Bool(opts.DontCheckSigs)
		},
		func(up *feeder) error { return c.feedPaths(up, src) },
		nil)
}

func (c *Client) feedPaths(up *feeder, src nix.PathSource) error {
	head := conn{w: wire.NewWriter(up), dialect: c.dialect}
	head.w.Uint64(src.Count)
	for range src.Count {
		info, nar, err := src.Next()
		if err != nil {
			return up.sourceError(fmt.Errorf("read upload: %w", err))
		}
		head.w.ValidPathInfo(info)
		if err := head.w.Flush(); err != nil {
			return err
		}
		if err := up.copyNar(info, nar); err != nil {
			return err
		}
	}
	return head.w.Flush()
}
