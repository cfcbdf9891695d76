package worker

import (
	"context"

	"nixbastion/internal/nix"
)

// queryValidPaths: a set of paths and, since 1.27, whether to substitute. Every
// copy starts with it.
func (q *request) queryValidPaths() (func(), error) {
	paths := q.r.StorePaths(q.limits.Paths)
	substitute := q.version >= sinceSubstituteFlag && q.r.Bool()
	if err := q.received(); err != nil {
		return nil, err
	}
	valid, err := q.store.QueryValidPaths(q.ctx, paths, substitute)
	return func() { q.w.StorePaths(valid) }, err
}

// QueryValidPaths implements [nix.Store]. Daemons before 1.27 do not substitute.
func (c *Client) QueryValidPaths(ctx context.Context, paths []nix.StorePath, substitute bool) ([]nix.StorePath, error) {
	var valid []nix.StorePath
	err := c.do(ctx, opQueryValidPaths, c.log,
		func() {
			c.w.StorePaths(paths)
			if c.version >= sinceSubstituteFlag {
				c.w.Bool(substitute)
			}
		},
		func() { valid = c.r.StorePaths(c.limits.Paths) })
	return valid, err
}

func (q *request) isValidPath() (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	valid, err := q.valid(path, false)
	return func() { q.w.Bool(valid) }, err
}

// onePath reads the request of the many operations that ask about one path.
func (q *request) onePath() (nix.StorePath, error) {
	path := q.r.StorePath()
	return path, q.received()
}

func (q *request) valid(path nix.StorePath, substitute bool) (bool, error) {
	valid, err := q.store.QueryValidPaths(q.ctx, []nix.StorePath{path}, substitute)
	return len(valid) > 0, err
}

// ensurePath makes a path valid if the store can.
func (q *request) ensurePath() (func(), error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	valid, err := q.valid(path, true)
	if err == nil && !valid {
		err = nix.Refuse("path '%s' does not exist and there are no substituters", path)
	}
	return q.doneIf(err)
}
