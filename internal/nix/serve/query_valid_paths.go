package serve

import (
	"context"
	"fmt"
	"slices"

	"nixbastion/internal/nix"
)

// queryValidPaths: whether to lock, whether to substitute, a set of paths. Every
// upload starts with it.
func (q *request) queryValidPaths() (func() error, error) {
	lock, substitute := q.r.Bool(), q.r.Bool()
	paths := q.r.StorePaths(q.limits.Paths)
	if err := q.received(); err != nil {
		return nil, err
	}
	if store, ok := q.store.(nix.TempRooter); ok && lock && q.opts.Write {
		if err := store.AddTempRoots(q.ctx, paths); err != nil {
			return nil, err
		}
	}
	valid, err := q.store.QueryValidPaths(q.ctx, paths, substitute && q.opts.Write)
	return func() error { q.w.StorePaths(valid); return nil }, err
}

// rootedPaths is the answer that came when paths were made temporary roots.
type rootedPaths struct{ asked, valid []nix.StorePath }

// AddTempRoots implements [nix.TempRooter]. The server says at the same time
// which of the paths are valid: a QueryValidPaths of the same paths that follows
// at once is answered with that. A server without --write keeps no roots and
// does not say so.
func (c *Client) AddTempRoots(ctx context.Context, paths []nix.StorePath) error {
	asked := nix.SortPaths(slices.Clone(paths))
	valid, err := c.queryValidPaths(ctx, asked, true, false)
	if err != nil {
		return fmt.Errorf("add temporary roots: %w", err)
	}
	c.rooted = &rootedPaths{asked: asked, valid: valid}
	return nil
}

// QueryValidPaths implements [nix.Store].
func (c *Client) QueryValidPaths(ctx context.Context, paths []nix.StorePath, substitute bool) ([]nix.StorePath, error) {
	asked := nix.SortPaths(slices.Clone(paths))
	if known := c.rooted; known != nil && !substitute && slices.Equal(known.asked, asked) {
		c.rooted = nil
		return known.valid, nil
	}
	return c.queryValidPaths(ctx, asked, false, substitute)
}

// queryValidPaths takes asked in order and without duplicates.
func (c *Client) queryValidPaths(ctx context.Context, asked []nix.StorePath, lock, substitute bool) ([]nix.StorePath, error) {
	var valid []nix.StorePath
	err := c.do(ctx, cmdQueryValidPaths,
		func() {
			c.w.Bool(lock)
			c.w.Bool(substitute)
			c.w.StorePaths(asked)
		},
		func() { valid = c.readSubset(asked) })
	return valid, err
}

// readSubset reads those of asked that something holds for.
func (c *Client) readSubset(asked []nix.StorePath) []nix.StorePath {
	found := c.r.StorePaths(len(asked))
	for _, path := range found {
		if !c.wasAsked(asked, path) {
			return nil
		}
	}
	return found
}

// wasAsked fails the reader if a path in an answer is none of those asked for.
func (c *Client) wasAsked(asked []nix.StorePath, path nix.StorePath) bool {
	_, ok := slices.BinarySearchFunc(asked, path, nix.StorePath.Compare)
	if !ok {
		c.r.Fail(fmt.Errorf("expected an answer about the paths asked for, got %s", path))
	}
	return ok
}
