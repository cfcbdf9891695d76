package worker

import (
	"context"
	"errors"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// Operations that look paths up by something else than the path.

func (q *request) queryReferrers() (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	store, ok := q.store.(nix.PathFinder)
	if !ok {
		return nil, q.unsupported()
	}
	found, err := store.QueryReferrers(q.ctx, path)
	return func() { q.w.StorePaths(found) }, wire.NotValid(path, err)
}

// queryValidDerivers falls back to the deriver in the path's info.
func (q *request) queryValidDerivers() (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	store, ok := q.store.(nix.PathFinder)
	if !ok {
		found, err := q.validDeriver(path)
		return func() { q.w.StorePaths(found) }, err
	}
	found, err := store.QueryValidDerivers(q.ctx, path)
	return func() { q.w.StorePaths(found) }, wire.NotValid(path, err)
}

func (q *request) validDeriver(path nix.StorePath) ([]nix.StorePath, error) {
	info, err := q.store.QueryPathInfo(q.ctx, path)
	if errors.Is(err, nix.ErrNotFound) {
		return nil, nil
	}
	if err != nil || info.Deriver.IsZero() {
		return nil, err
	}
	return q.store.QueryValidPaths(q.ctx, []nix.StorePath{info.Deriver}, false)
}

// queryPathFromHashPart answers with no path where the store cannot tell, which
// is always a legal answer.
func (q *request) queryPathFromHashPart() (func(), error) {
	hashPart := q.r.String(wire.MaxString)
	if err := q.received(); err != nil {
		return nil, err
	}
	var found nix.StorePath
	var err error
	if store, ok := q.store.(nix.PathFinder); ok {
		found, err = store.QueryPathFromHashPart(q.ctx, hashPart)
	}
	if errors.Is(err, nix.ErrNotFound) {
		found, err = nix.StorePath{}, nil
	}
	return func() { q.w.StorePath(found) }, err
}

func (q *request) queryAllValidPaths() (func(), error) {
	if err := q.received(); err != nil {
		return nil, err
	}
	store, ok := q.store.(nix.PathLister)
	if !ok {
		return nil, q.unsupported()
	}
	all, err := store.QueryAllValidPaths(q.ctx)
	return func() { q.w.StorePaths(all) }, err
}

// QueryReferrers implements [nix.PathFinder].
func (c *Client) QueryReferrers(ctx context.Context, path nix.StorePath) ([]nix.StorePath, error) {
	return c.queryPaths(ctx, opQueryReferrers, func() { c.w.StorePath(path) })
}

// QueryValidDerivers implements [nix.PathFinder].
func (c *Client) QueryValidDerivers(ctx context.Context, path nix.StorePath) ([]nix.StorePath, error) {
	return c.queryPaths(ctx, opQueryValidDerivers, func() { c.w.StorePath(path) })
}

// QueryAllValidPaths implements [nix.PathLister].
func (c *Client) QueryAllValidPaths(ctx context.Context) ([]nix.StorePath, error) {
	return c.queryPaths(ctx, opQueryAllValidPaths, nil)
}

// WalkAllValidPaths implements [nix.PathWalker]. Nothing of a path that was visited
// stays here, so what a list may take of memory is the business of visit.
func (c *Client) WalkAllValidPaths(ctx context.Context, limit int, visit func(nix.StorePath)) error {
	return c.do(ctx, opQueryAllValidPaths, c.log, nil, func() {
		for range c.r.Count(limit) {
			c.readMessage()
			path := c.r.StorePath()
			if c.r.Err() != nil {
				return
			}
			visit(path)
		}
	})
}

func (c *Client) queryPaths(ctx context.Context, op Op, write func()) ([]nix.StorePath, error) {
	var found []nix.StorePath
	err := c.do(ctx, op, c.log, write, func() { found = c.r.StorePaths(c.limits.Paths) })
	return found, notFound(err)
}

// QueryPathFromHashPart implements [nix.PathFinder].
func (c *Client) QueryPathFromHashPart(ctx context.Context, hashPart string) (nix.StorePath, error) {
	var found nix.StorePath
	err := c.do(ctx, opQueryPathFromHashPart, c.log,
		func() { c.w.String(hashPart) },
		func() { found = c.r.OptionalStorePath() })
	if err == nil && found.IsZero() {
		err = nix.ErrNotFound
	}
	return found, err
}
