package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"nixbastion/cache"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// maxDrvSize is the largest .drv file that is read, in bytes. Flakes put whole
// JSON documents into derivations.
const maxDrvSize = 64 << 20

// BuildPathsWithResults realises targets one after another: paths that are valid
// already, and derivations whose inputs are all valid. A graph of several
// unbuilt derivations is refused with its name.
func (s *session) BuildPathsWithResults(ctx context.Context, log nix.Logger, targets []nix.DerivedPath, mode nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	results := make([]nix.KeyedBuildResult, len(targets))
	for i, target := range targets {
		result, err := s.realise(ctx, log, target, mode)
		if err != nil {
			return nil, err
		}
		results[i] = nix.KeyedBuildResult{Target: target, Result: result}
	}
	return results, nil
}

func (s *session) realise(ctx context.Context, log nix.Logger, target nix.DerivedPath, mode nix.BuildMode) (*nix.BuildResult, error) {
	if !target.Built && mode == nix.BuildRepair {
		return nil, nix.Refuse("path '%s' is not repaired by itself; ask for the derivation that makes it", target.Path)
	}
	if !target.Built {
		s.have(ctx, target.Path)
		return s.realiseOpaque(target.Path), nil
	}
	drv, err := s.derivation(ctx, target.Path)
	if errors.Is(err, nix.ErrNotFound) {
		return nix.Failure(nix.StatusMiscFailure, "derivation %s is not valid here; upload it first", target.Path), nil
	}
	if err != nil {
		return nil, err
	}
	if result := s.wantedOutputs(drv, target, mode); result != nil {
		return result, nil
	}
	if err := s.mayBuild(mode); err != nil {
		return nil, err
	}
	basic, failure := s.flatten(ctx, target.Path, drv, func(ref nix.StorePath) { s.have(ctx, ref) })
	if failure != nil {
		if trustOf(s.principal.Role) == nix.NotTrusted { // these clients never look at the result
			nix.Line(log, failure.ErrorMsg)
		}
		return failure, nil
	}
	return s.BuildDerivation(ctx, log, target.Path, basic, mode)
}

func (s *session) realiseOpaque(path nix.StorePath) *nix.BuildResult {
	if len(s.pins.Pin(s.domain(), []nix.StorePath{path})) == 0 {
		return nix.Failure(nix.StatusNoSubstituters, "path %s is not valid here and nothing can substitute it", path)
	}
	return &nix.BuildResult{Status: nix.StatusAlreadyValid}
}

// wantedOutputs returns a result if the outputs asked for are valid, else nil.
func (s *session) wantedOutputs(drv *nix.Derivation, target nix.DerivedPath, mode nix.BuildMode) *nix.BuildResult {
	if mode != nix.BuildNormal {
		return nil
	}
	var wanted []nix.BuiltOutput
	for _, o := range drv.Outputs {
		if !target.Wants(o.Name) {
			continue
		}
		if o.Path.IsZero() || len(s.pins.Pin(s.domain(), []nix.StorePath{o.Path})) == 0 {
			return nil
		}
		wanted = append(wanted, nix.BuiltOutput{Name: o.Name, Path: o.Path})
	}
	return &nix.BuildResult{Status: nix.StatusAlreadyValid, Outputs: wanted}
}

// derivation reads a .drv file from the cache.
func (s *session) derivation(ctx context.Context, path nix.StorePath) (*nix.Derivation, error) {
	text, err := readDerivation(ctx, s.cache, s.domain(), path, maxDrvSize)
	if err != nil {
		return nil, err
	}
	drv, err := nix.ParseDerivation(path.DrvName(), text)
	if err != nil {
		return nil, nix.Refuse("derivation %s: %v", path, err)
	}
	return drv, nil
}

// readDerivation reads the text of a .drv file of at most limit bytes.
func readDerivation(ctx context.Context, c *cache.Cache, domain string, path nix.StorePath, limit int64) ([]byte, error) {
	if !path.IsDerivation() {
		return nil, nix.Refuse("%s is not a derivation", path)
	}
	file, err := c.OpenNar(ctx, domain, path)
	if err != nil {
		return nil, fmt.Errorf("read derivation %s: %w", path, err)
	}
	defer file.Close()
	contents, err := nar.SingleFile(file)
	if err != nil {
		return nil, nix.Refuse("derivation %s: %v", path, err)
	}
	if contents.Size > uint64(limit) {
		return nil, nix.Refuse("derivation %s has %d bytes; the limit is %d", path, contents.Size, limit)
	}
	text, err := io.ReadAll(contents)
	if err != nil {
		return nil, fmt.Errorf("read derivation %s: %w", path, err)
	}
	return text, nil
}

// flatten turns a derivation into the form that is built: its input derivations
// replaced by their outputs, and all inputs by their closure. A failure names
// what is not built yet. Want is that of closure.
func (s *session) flatten(ctx context.Context, path nix.StorePath, drv *nix.Derivation, want func(nix.StorePath)) (*nix.BasicDerivation, *nix.BuildResult) {
	roots := slices.Clone(drv.InputSrcs)
	for _, input := range drv.InputDrvs {
		outputs, err := s.inputOutputs(ctx, input)
		if err != nil {
			return nil, nix.Failure(nix.StatusDependencyFailed,
				"%s needs %s, %v; the proxy builds one derivation at a time, so build that one first or let the client's build hook order them", path, input.Path, err)
		}
		roots = append(roots, outputs...)
	}
	closure, err := s.closure(roots, want)
	if err != nil {
		return nil, nix.Failure(nix.StatusInputRejected, "%s: %v", path, err)
	}
	basic := drv.BasicDerivation
	basic.InputSrcs = closure
	return &basic, nil
}

func (s *session) inputOutputs(ctx context.Context, input nix.InputDrv) ([]nix.StorePath, error) {
	known, err := s.QueryDerivationOutputMap(ctx, input.Path)
	if err != nil {
		return nil, errors.New("whose derivation is not valid here")
	}
	paths := make([]nix.StorePath, 0, len(input.Outputs))
	for _, name := range input.Outputs {
		path := known[name]
		if path.IsZero() || len(s.pins.Pin(s.domain(), []nix.StorePath{path})) == 0 {
			return nil, fmt.Errorf("whose output %q is not built", name)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// closure returns paths with everything they refer to, sorted. Each path is offered
// to want before it is looked up: of one that was found on a builder some of the
// closure may still be there. It may be nil.
func (s *session) closure(roots []nix.StorePath, want func(nix.StorePath)) ([]nix.StorePath, error) {
	seen := map[nix.StorePath]bool{}
	queue := slices.Clone(roots)
	for len(queue) > 0 {
		path := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if seen[path] {
			continue
		}
		seen[path] = true
		if want != nil {
			want(path)
		}
		infos, err := s.inputInfos([]nix.StorePath{path})
		if err != nil {
			return nil, err
		}
		queue = append(queue, infos[0].References...)
	}
	return slices.SortedFunc(maps.Keys(seen), nix.StorePath.Compare), nil
}

// QueryDerivationOutputMap reads the outputs of a derivation in the cache.
func (s *session) QueryDerivationOutputMap(ctx context.Context, drvPath nix.StorePath) (map[string]nix.StorePath, error) {
	drv, err := s.derivation(ctx, drvPath)
	if err != nil {
		return nil, err
	}
	outputs := make(map[string]nix.StorePath, len(drv.Outputs))
	for _, o := range drv.Outputs {
		outputs[o.Name] = o.Path
	}
	return outputs, nil
}

// QueryMissing tells from the cache and the uploaded derivations what a build of
// targets takes.
func (s *session) QueryMissing(ctx context.Context, targets []nix.DerivedPath) (*nix.Missing, error) {
	missing := &nix.Missing{}
	for _, target := range targets {
		switch known, err := s.isRealised(ctx, target); {
		case err != nil:
			missing.Unknown = append(missing.Unknown, target.Path)
		case !known && target.Built:
			missing.WillBuild = append(missing.WillBuild, target.Path)
		case !known:
			missing.Unknown = append(missing.Unknown, target.Path)
		}
	}
	nix.SortPaths(missing.WillBuild)
	nix.SortPaths(missing.Unknown)
	return missing, nil
}

func (s *session) isRealised(ctx context.Context, target nix.DerivedPath) (bool, error) {
	if !target.Built {
		return s.realiseOpaque(target.Path).Status.Success(), nil
	}
	drv, err := s.derivation(ctx, target.Path)
	if err != nil {
		return false, err
	}
	return s.wantedOutputs(drv, target, nix.BuildNormal) != nil, nil
}
