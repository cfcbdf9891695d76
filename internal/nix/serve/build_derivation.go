package serve

import (
	"context"

	"nixbastion/internal/nix"
)

// buildDerivation: a derivation's path, the derivation, options. What a build
// hook sends.
func (q *request) buildDerivation() (func() error, error) {
	path := q.r.StorePath()
	drv := q.r.Derivation(q.limits.Paths)
	opts := q.readBuildOptions()
	if err := q.received(); err != nil {
		return nil, err
	}
	result := q.prepare(opts)
	if result == nil {
		result = q.build(path, drv)
	}
	return func() error { q.writeBuildResult(result); return nil }, nil
}

func (q *request) build(path nix.StorePath, drv *nix.BasicDerivation) *nix.BuildResult {
	result, err := q.store.BuildDerivation(q.ctx, q.log, path, drv, nix.BuildNormal)
	if err != nil {
		return q.failed(err)
	}
	return result
}

// BuildDerivation implements [nix.Store] for normal builds: there are no words
// for others. What the build prints comes on the server's standard error, so
// that nothing is logged here.
func (c *Client) BuildDerivation(ctx context.Context, _ nix.Logger, drvPath nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (*nix.BuildResult, error) {
	if mode != nix.BuildNormal {
		return nil, refuse("a check or a repair")
	}
	var result *nix.BuildResult
	err := c.do(ctx, cmdBuildDerivation,
		func() {
			c.w.StorePath(drvPath)
			c.w.Derivation(drv)
			c.writeBuildOptions(c.builds)
		},
		func() { result = c.readBuildResult() })
	if err != nil {
		return nil, err
	}
	return result, nil
}
