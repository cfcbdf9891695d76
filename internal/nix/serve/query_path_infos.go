package serve

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nixbastion/internal/nix"
)

// queryPathInfos leaves out what is not valid: there is no other answer, and old
// clients abort over a path that they did not ask for. The infos go out one by
// one, since all of them may be more than memory should hold.
func (q *request) queryPathInfos() (func() error, error) {
	paths := q.r.StorePaths(q.limits.Paths)
	if err := q.received(); err != nil {
		return nil, err
	}
	return func() error {
		for _, path := range paths {
			if err := q.sendPathInfo(path); err != nil {
				return err
			}
		}
		q.w.StorePath(nix.StorePath{})
		return nil
	}, nil
}

func (q *request) sendPathInfo(path nix.StorePath) error {
	info, err := q.store.QueryPathInfo(q.ctx, path)
	if errors.Is(err, nix.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	q.w.StorePath(path)
	q.writePathInfo(info)
	return q.w.Err()
}

// readPathInfos reads the answer about paths that were asked for, which must be
// in order. Those that are missing in it are not valid.
func (c *Client) readPathInfos(asked []nix.StorePath) map[nix.StorePath]*nix.PathInfo {
	infos := make(map[nix.StorePath]*nix.PathInfo)
	for {
		path := c.r.OptionalStorePath()
		if c.r.Err() != nil || path.IsZero() || !c.wasAsked(asked, path) {
			return infos
		}
		if infos[path] != nil {
			c.r.Fail(fmt.Errorf("expected one answer about each path, got two about %s", path))
			return infos
		}
		infos[path] = c.readPathInfo(path)
	}
}

// QueryPathInfo implements [nix.Store].
func (c *Client) QueryPathInfo(ctx context.Context, path nix.StorePath) (*nix.PathInfo, error) {
	infos, err := c.QueryPathInfos(ctx, []nix.StorePath{path})
	if err == nil && infos[0] == nil {
		err = nix.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("query path info of %s: %w", path, err)
	}
	return infos[0], nil
}

// QueryPathInfos asks for many paths at once. The result has an entry per path,
// nil where it is not valid.
func (c *Client) QueryPathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	var infos []*nix.PathInfo
	for some := range slices.Chunk(paths, infoBatch) {
		found, err := c.querySome(ctx, nix.SortPaths(slices.Clone(some)))
		if err != nil {
			return nil, fmt.Errorf("query path infos: %w", err)
		}
		for _, path := range some {
			infos = append(infos, found[path])
		}
	}
	return infos, nil
}

func (c *Client) querySome(ctx context.Context, asked []nix.StorePath) (map[nix.StorePath]*nix.PathInfo, error) {
	var found map[nix.StorePath]*nix.PathInfo
	err := c.do(ctx, cmdQueryPathInfos,
		func() { c.w.StorePaths(asked) },
		func() { found = c.readPathInfos(asked) })
	return found, err
}
