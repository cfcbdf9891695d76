package upstream

import (
	"context"
	"errors"
	"io"

	"nixbastion/internal/nix"
)

// The operations are those of the protocol's client with errors as [Session]
// promises them. SetOptions is missing on purpose: what it sets would
// hold for the next user of the session, too. See [Settings].

// QueryValidPaths implements [nix.Store].
func (s *Session) QueryValidPaths(ctx context.Context, paths []nix.StorePath, substitute bool) ([]nix.StorePath, error) {
	valid, err := s.d.client.QueryValidPaths(ctx, paths, substitute)
	return valid, s.fault(err)
}

// QueryPathInfo implements [nix.Store].
func (s *Session) QueryPathInfo(ctx context.Context, path nix.StorePath) (*nix.PathInfo, error) {
	info, err := s.d.client.QueryPathInfo(ctx, path)
	return info, s.fault(err)
}

// QueryPathInfos asks for many paths without waiting for each answer.
func (s *Session) QueryPathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	infos, err := s.d.client.QueryPathInfos(ctx, paths)
	return infos, s.fault(err)
}

// NarFromPath implements [nix.Store].
func (s *Session) NarFromPath(ctx context.Context, path nix.StorePath) (io.ReadCloser, error) {
	nar, err := s.d.client.NarFromPath(ctx, path)
	if err != nil {
		return nil, s.fault(err)
	}
	return narReader{nar, s}, nil
}

// AddToStore implements [nix.Store].
func (s *Session) AddToStore(ctx context.Context, log nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	s.d.roots++
	info, err := s.d.client.AddToStore(ctx, log, req, dump)
	return info, s.fault(err)
}

// AddMultipleToStore implements [nix.Store].
func (s *Session) AddMultipleToStore(ctx context.Context, log nix.Logger, src nix.PathSource, opts nix.AddOptions) error {
	s.d.roots += int(min(src.Count, 1<<30))
	return s.fault(s.d.client.AddMultipleToStore(ctx, log, src, opts))
}

// BuildDerivation implements [nix.Store]. A build that is given up is ended within a
// second, when its daemon heeds that.
func (s *Session) BuildDerivation(ctx context.Context, log nix.Logger, drvPath nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (*nix.BuildResult, error) {
	s.d.roots += len(drv.Outputs)
	_, announced := s.d.client.(*serveClient)
	later, log, stop := heeding(ctx, log, announced)
	defer stop()
	result, err := s.d.client.BuildDerivation(later, log, drvPath, drv, mode)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = ctx.Err()
	}
	return result, s.fault(err)
}

// BuildPathsWithResults implements [nix.Store].
func (s *Session) BuildPathsWithResults(ctx context.Context, log nix.Logger, targets []nix.DerivedPath, mode nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	s.d.roots += len(targets)
	results, err := s.d.client.BuildPathsWithResults(ctx, log, targets, mode)
	return results, s.fault(err)
}

// AddTempRoots implements [nix.TempRooter].
func (s *Session) AddTempRoots(ctx context.Context, paths []nix.StorePath) error {
	s.d.roots += len(paths)
	return s.fault(s.d.client.AddTempRoots(ctx, paths))
}

// The operations below are unknown to the serve protocol and refused with a
// sentence where that is spoken.

// QueryAllValidPaths implements [nix.PathLister].
func (s *Session) QueryAllValidPaths(ctx context.Context) ([]nix.StorePath, error) {
	c, ok := s.d.client.(nix.PathLister)
	if !ok {
		return nil, s.noWords("a list of all paths")
	}
	paths, err := c.QueryAllValidPaths(ctx)
	return paths, s.fault(err)
}

// WalkAllValidPaths implements [nix.PathWalker].
func (s *Session) WalkAllValidPaths(ctx context.Context, limit int, visit func(nix.StorePath)) error {
	c, ok := s.d.client.(nix.PathWalker)
	if !ok {
		return s.noWords("a list of all paths")
	}
	return s.fault(c.WalkAllValidPaths(ctx, limit, visit))
}

// QueryMissing implements [nix.MissingQuerier].
func (s *Session) QueryMissing(ctx context.Context, targets []nix.DerivedPath) (*nix.Missing, error) {
	c, ok := s.d.client.(nix.MissingQuerier)
	if !ok {
		return nil, s.noWords("what is missing for a build")
	}
	missing, err := c.QueryMissing(ctx, targets)
	return missing, s.fault(err)
}

// QueryDerivationOutputMap implements [nix.OutputMapper].
func (s *Session) QueryDerivationOutputMap(ctx context.Context, drvPath nix.StorePath) (map[string]nix.StorePath, error) {
	c, ok := s.d.client.(nix.OutputMapper)
	if !ok {
		return nil, s.noWords("the outputs of a derivation")
	}
	outputs, err := c.QueryDerivationOutputMap(ctx, drvPath)
	return outputs, s.fault(err)
}

// QueryPathFromHashPart implements [nix.PathFinder].
func (s *Session) QueryPathFromHashPart(ctx context.Context, hashPart string) (nix.StorePath, error) {
	c, ok := s.d.client.(nix.PathFinder)
	if !ok {
		return nix.StorePath{}, s.noWords("a path by its hash part")
	}
	path, err := c.QueryPathFromHashPart(ctx, hashPart)
	return path, s.fault(err)
}

// noWords refuses what the serve protocol cannot ask for.
func (s *Session) noWords(what string) error {
	return nix.Refuse("builder '%s' is spoken to by the serve protocol (protocol: ssh), which cannot ask for %s", s.Builder(), what)
}
