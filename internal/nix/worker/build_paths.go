package worker

import (
	"context"

	"nixbastion/internal/nix"
)

// readTargets reads what BuildPaths and BuildPathsWithResults ask for.
func (c *conn) readTargets() ([]nix.DerivedPath, nix.BuildMode) {
	return c.readDerivedPaths(), c.readBuildMode()
}

func (c *conn) writeTargets(targets []nix.DerivedPath, mode nix.BuildMode) {
	c.writeDerivedPaths(targets)
	c.w.Uint64(uint64(mode))
}

func (q *request) buildPathsWithResults() (func(), error) {
	targets, mode := q.readTargets()
	if err := q.received(); err != nil {
		return nil, err
	}
	results, err := q.store.BuildPathsWithResults(q.ctx, q.log, targets, mode)
	return func() { q.writeKeyedResults(results) }, err
}

// buildPaths has no words for a result: a target that failed is an error.
func (q *request) buildPaths() (func(), error) {
	targets, mode := q.readTargets()
	if err := q.received(); err != nil {
		return nil, err
	}
	results, err := q.store.BuildPathsWithResults(q.ctx, q.log, targets, mode)
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		if !r.Result.Status.Success() {
			return nil, buildFailed(r)
		}
	}
	return q.done, nil
}

// buildFailed carries the exit status that clients before 1.26 end with.
func buildFailed(r nix.KeyedBuildResult) error {
	status := uint32(100)
	switch r.Result.Status {
	case nix.StatusTimedOut:
		status = 101
	case nix.StatusHashMismatch, nix.StatusOutputRejected:
		status = 102
	case nix.StatusNotDeterministic:
		status = 104
	}
	message := r.Result.ErrorMsg
	if message == "" {
		message = "build of '" + r.Target.String() + "' failed: " + r.Result.Status.String()
	}
	return &nix.RemoteError{Message: message, Status: status}
}

// BuildPathsWithResults implements [nix.Store]. Daemons before 1.34 tell no
// results: there success is Built without outputs, and a failure the daemon's
// error.
func (c *Client) BuildPathsWithResults(ctx context.Context, log nix.Logger, targets []nix.DerivedPath, mode nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	if err := c.canName(targets); err != nil {
		return nil, err
	}
	if c.version < sinceBuildResults {
		return c.buildPaths(ctx, log, targets, mode)
	}
	var results []nix.KeyedBuildResult
	err := c.do(ctx, opBuildPathsWithResults, log,
		func() { c.writeTargets(targets, mode) },
		func() { results = c.readKeyedResults() })
	if err != nil {
		return nil, err
	}
	return results, nil
}

func (c *Client) buildPaths(ctx context.Context, log nix.Logger, targets []nix.DerivedPath, mode nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	err := c.do(ctx, opBuildPaths, log,
		func() { c.writeTargets(targets, mode) },
		func() { c.r.Uint64() })
	if err != nil {
		return nil, err
	}
	results := make([]nix.KeyedBuildResult, len(targets))
	for i, target := range targets {
		results[i] = nix.KeyedBuildResult{Target: target, Result: &nix.BuildResult{Status: nix.StatusBuilt}}
	}
	return results, nil
}
