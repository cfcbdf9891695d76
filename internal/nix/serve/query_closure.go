package serve

import (
	"fmt"
	"maps"
	"slices"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// queryClosure: whether outputs of derivations belong to it, and a set of paths.
// With it a copy from here learns in one trip what to fetch.
func (q *request) queryClosure() (func() error, error) {
	includeOutputs := q.r.Bool()
	paths := q.r.StorePaths(q.limits.Paths)
	if err := q.received(); err != nil {
		return nil, err
	}
	c := &closure{request: q, includeOutputs: includeOutputs, found: make(map[nix.StorePath]bool)}
	if err := c.compute(paths); err != nil {
		return nil, err
	}
	found := slices.Collect(maps.Keys(c.found))
	return func() error { q.w.StorePaths(found); return nil }, nil
}

// closure follows references.
type closure struct {
	*request
	includeOutputs bool
	found          map[nix.StorePath]bool
	todo           []nix.StorePath
}

func (c *closure) compute(paths []nix.StorePath) error {
	if err := c.add(paths); err != nil {
		return err
	}
	for len(c.todo) > 0 {
		path := c.todo[len(c.todo)-1]
		c.todo = c.todo[:len(c.todo)-1]
		if err := c.follow(path); err != nil {
			return err
		}
	}
	return nil
}

func (c *closure) add(paths []nix.StorePath) error {
	for _, path := range paths {
		if !c.found[path] {
			c.found[path] = true
			c.todo = append(c.todo, path)
		}
	}
	if len(c.found) > c.limits.Paths {
		return nix.Refuse("the closure has more than %d paths", c.limits.Paths)
	}
	return nil
}

func (c *closure) follow(path nix.StorePath) error {
	info, err := c.store.QueryPathInfo(c.ctx, path)
	if err != nil {
		return wire.NotValid(path, err)
	}
	if err := c.add(info.References); err != nil || !c.includeOutputs || !path.IsDerivation() {
		return err
	}
	outputs, err := c.validOutputs(path)
	if err != nil {
		return fmt.Errorf("outputs of %s: %w", path, err)
	}
	return c.add(outputs)
}

func (c *closure) validOutputs(drv nix.StorePath) ([]nix.StorePath, error) {
	store, ok := c.store.(nix.OutputMapper)
	if !ok {
		return nil, nix.Refuse("%s with outputs of derivations is not supported through this proxy", c.cmd)
	}
	outputs, err := store.QueryDerivationOutputMap(c.ctx, drv)
	if err != nil {
		return nil, err
	}
	known := slices.DeleteFunc(slices.Collect(maps.Values(outputs)), nix.StorePath.IsZero)
	return c.store.QueryValidPaths(c.ctx, nix.SortPaths(known), false)
}
