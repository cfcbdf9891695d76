package serve

import (
	"context"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// buildPaths: a list of targets and options. Nix answers a failure with an exit
// status where clients read the status of a BuildResult: they take the 1 of any
// error for "Substituted" and die of those above 100. So the answer here is 0, or
// a status that is a failure everywhere, with its text.
func (q *request) buildPaths() (func() error, error) {
	targets := wire.List(q.r, q.limits.Paths, q.r.OldDerivedPath)
	opts := q.readBuildOptions()
	if err := q.received(); err != nil {
		return nil, err
	}
	failure := q.prepare(opts)
	if failure == nil {
		failure = q.realise(targets)
	}
	return func() error {
		if failure != nil {
			q.w.BuildEnd(failure)
		} else {
			q.w.Uint64(0)
		}
		return nil
	}, nil
}

// realise returns the first failure, nil if there is none.
func (q *request) realise(targets []nix.DerivedPath) *nix.BuildResult {
	results, err := q.store.BuildPathsWithResults(q.ctx, q.log, targets, nix.BuildNormal)
	if err != nil {
		return q.failed(err)
	}
	for _, r := range results {
		if !r.Result.Status.Success() {
			return explained(r)
		}
	}
	return nil
}

// explained returns a failure that has a text.
func explained(r nix.KeyedBuildResult) *nix.BuildResult {
	if r.Result.ErrorMsg != "" {
		return r.Result
	}
	return nix.Failure(r.Result.Status, "build of '%s' failed: %s", r.Target, r.Result.Status)
}

// BuildPathsWithResults implements [nix.Store] by refusing: what servers answer
// to BuildPaths does not say whether it succeeded.
func (c *Client) BuildPathsWithResults(context.Context, nix.Logger, []nix.DerivedPath, nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	return nil, refuse("a build of several targets")
}
