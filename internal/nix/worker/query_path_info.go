package worker

import (
	"context"
	"errors"
	"fmt"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// queryPathInfo answers an unknown path with 0, never with an error: clients up
// to 2.30 would take the connection for broken.
func (q *request) queryPathInfo() (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	info, err := q.store.QueryPathInfo(q.ctx, path)
	if errors.Is(err, nix.ErrNotFound) {
		return func() { q.w.Bool(false) }, nil
	}
	return func() {
		q.w.Bool(true)
		q.w.PathInfo(info)
	}, err
}

// readFoundInfo reads the answer; nil if the path is not valid.
func (c *conn) readFoundInfo(path nix.StorePath) *nix.PathInfo {
	if !c.r.Bool() {
		return nil
	}
	return c.readPathInfo(path)
}

// QueryPathInfo implements [nix.Store].
func (c *Client) QueryPathInfo(ctx context.Context, path nix.StorePath) (*nix.PathInfo, error) {
	var info *nix.PathInfo
	err := c.do(ctx, opQueryPathInfo, c.log,
		func() { c.w.StorePath(path) },
		func() { info = c.readFoundInfo(path) })
	if err == nil && info == nil {
		err = nix.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("query path info of %s: %w", path, notFound(err))
	}
	return info, nil
}

// QueryPathInfos asks for many paths without waiting for each answer. The result
// has an entry per path, nil where it is not valid.
func (c *Client) QueryPathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	infos := make([]*nix.PathInfo, len(paths))
	err := c.pipeline(ctx, opQueryPathInfo, len(paths),
		func(i int) { c.w.StorePath(paths[i]) },
		func(i int) { infos[i] = c.readFoundInfo(paths[i]) })
	if err != nil && !errors.Is(notFound(err), nix.ErrNotFound) {
		return nil, fmt.Errorf("query path infos: %w", err)
	}
	return infos, nil
}

// The operations below are parts of a path info that only old clients ask for.

func (q *request) queryPathHash() (func(), error) {
	return q.partOfInfo(func(info *nix.PathInfo) { q.w.String(info.NarHash.Base16()) })
}

func (q *request) queryReferences() (func(), error) {
	return q.partOfInfo(func(info *nix.PathInfo) { q.w.StorePaths(info.References) })
}

func (q *request) queryDeriver() (func(), error) {
	return q.partOfInfo(func(info *nix.PathInfo) { q.w.StorePath(info.Deriver) })
}

func (q *request) partOfInfo(write func(*nix.PathInfo)) (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	info, err := q.store.QueryPathInfo(q.ctx, path)
	return func() { write(info) }, wire.NotValid(path, err)
}
