package worker

import (
	"context"

	"nixbastion/internal/nix"
)

// buildDerivation: a derivation's path, the derivation, a mode. What a build
// hook sends.
func (q *request) buildDerivation() (func(), error) {
	path := q.r.StorePath()
	drv := q.readDerivation()
	mode := q.readBuildMode()
	if err := q.received(); err != nil {
		return nil, err
	}
	result, err := q.store.BuildDerivation(q.ctx, q.log, path, drv, mode)
	return func() { q.writeBuildResult(result) }, err
}

// BuildDerivation implements [nix.Store]. Log messages are handed on in the
// order in which they come, from the goroutine of the caller.
func (c *Client) BuildDerivation(ctx context.Context, log nix.Logger, drvPath nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (*nix.BuildResult, error) {
	var result *nix.BuildResult
	err := c.do(ctx, opBuildDerivation, log,
		func() {
			c.w.StorePath(drvPath)
			c.w.Derivation(drv)
			c.w.Uint64(uint64(mode))
		},
		func() { result = c.readBuildResult() })
	if err != nil {
		return nil, err
	}
	return result, nil
}
