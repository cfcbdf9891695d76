package worker

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// readOutputMap reads names of outputs with their paths, none where a path is
// not known yet.
func (c *conn) readOutputMap() map[string]nix.StorePath {
	outputs := make(map[string]nix.StorePath)
	for range c.r.Count(wire.MaxOutputs) {
		name, path := c.r.OutputName(), c.r.OptionalStorePath()
		if c.r.Err() != nil {
			return nil
		}
		outputs[name] = path
	}
	return outputs
}

func (c *conn) writeOutputMap(outputs map[string]nix.StorePath) {
	c.w.Uint64(uint64(len(outputs)))
	for _, name := range slices.Sorted(maps.Keys(outputs)) {
		c.w.String(name)
		c.w.StorePath(outputs[name])
	}
}

func (q *request) queryDerivationOutputMap() (func(), error) {
	outputs, err := q.outputsOf()
	return func() { q.writeOutputMap(outputs) }, err
}

// queryDerivationOutputs and the names are what clients before 1.22 ask for.
func (q *request) queryDerivationOutputs() (func(), error) {
	outputs, err := q.outputsOf()
	return func() {
		known := slices.DeleteFunc(slices.Collect(maps.Values(outputs)), nix.StorePath.IsZero)
		q.w.StorePaths(known)
	}, err
}

func (q *request) queryDerivationOutputNames() (func(), error) {
	outputs, err := q.outputsOf()
	return func() { q.w.StringSet(slices.Collect(maps.Keys(outputs))) }, err
}

func (q *request) outputsOf() (map[string]nix.StorePath, error) {
	path, err := q.onePath()
	if err != nil {
		return nil, err
	}
	store, ok := q.store.(nix.OutputMapper)
	if !ok {
		return nil, q.unsupported()
	}
	outputs, err := store.QueryDerivationOutputMap(q.ctx, path)
	return outputs, wire.NotValid(path, err)
}

// QueryDerivationOutputMap implements [nix.OutputMapper].
func (c *Client) QueryDerivationOutputMap(ctx context.Context, drvPath nix.StorePath) (map[string]nix.StorePath, error) {
	if err := c.needs(opQueryDerivationOutputMap, sinceOutputMap); err != nil {
		return nil, err
	}
	var outputs map[string]nix.StorePath
	err := c.do(ctx, opQueryDerivationOutputMap, c.log,
		func() { c.w.StorePath(drvPath) },
		func() { outputs = c.readOutputMap() })
	if err != nil {
		return nil, fmt.Errorf("query outputs of %s: %w", drvPath, notFound(err))
	}
	return outputs, nil
}
