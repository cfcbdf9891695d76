package storetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// Memory is a store in memory. It checks what a Nix store checks, but no
// signatures, and builds with Build. It is safe for concurrent use.
type Memory struct {
	// Build answers BuildDerivation when all inputs are valid; nil fails every
	// build. Set it before the store is used.
	Build func(ctx context.Context, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error)

	mu    sync.Mutex
	paths map[nix.StorePath]Object
	roots []nix.StorePath
}

var (
	_ nix.Store          = (*Memory)(nil)
	_ nix.TempRooter     = (*Memory)(nil)
	_ nix.PathFinder     = (*Memory)(nil)
	_ nix.PathLister     = (*Memory)(nil)
	_ nix.SignatureAdder = (*Memory)(nil)
)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{paths: make(map[nix.StorePath]Object)} }

// Put makes an object valid, unchecked, in place of what its path had.
func (m *Memory) Put(o Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paths[o.Info.Path] = o
}

// Get returns a valid object, or nix.ErrNotFound.
func (m *Memory) Get(path nix.StorePath) (Object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.paths[path]
	if !ok {
		return Object{}, fmt.Errorf("get %s: %w", path, nix.ErrNotFound)
	}
	return o, nil
}

// Roots returns the temporary roots in the order in which they were added.
func (m *Memory) Roots() []nix.StorePath {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.roots)
}

func (m *Memory) has(path nix.StorePath) bool {
	_, err := m.Get(path)
	return err == nil
}

// QueryValidPaths implements [nix.Store]. Nothing is substituted.
func (m *Memory) QueryValidPaths(_ context.Context, paths []nix.StorePath, _ bool) ([]nix.StorePath, error) {
	return slices.DeleteFunc(slices.Clone(paths), func(p nix.StorePath) bool { return !m.has(p) }), nil
}

// QueryPathInfo implements [nix.Store].
func (m *Memory) QueryPathInfo(_ context.Context, path nix.StorePath) (*nix.PathInfo, error) {
	o, err := m.Get(path)
	return o.Info, err
}

// NarFromPath implements [nix.Store].
func (m *Memory) NarFromPath(_ context.Context, path nix.StorePath) (io.ReadCloser, error) {
	o, err := m.Get(path)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(o.NAR)), nil
}

// AddToStore implements [nix.Store] for files and trees.
func (m *Memory) AddToStore(_ context.Context, _ nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	archive, content, err := readDump(req, dump)
	if err != nil {
		return nil, err
	}
	ca := nix.ContentAddress{Method: req.Method.Method, Hash: nix.HashBytes(req.Method.Algo, content)}
	path, err := nix.ContentAddressedPath(req.Name, ca, req.References, false)
	if err != nil {
		return nil, nix.Refuse("%v", err)
	}
	info := &nix.PathInfo{
		Path: path, CA: ca, NarHash: nix.HashBytes(nix.SHA256, archive), NarSize: uint64(len(archive)),
		References: nix.SortPaths(slices.Clone(req.References)),
	}
	if err := m.checkReferences(info); err != nil {
		return nil, err
	}
	m.putNew(Object{info, archive})
	return info, nil
}

// readDump returns the NAR and the bytes that the address is over.
func readDump(req nix.AddToStoreRequest, dump io.Reader) (archive, content []byte, err error) {
	switch {
	case req.Method.Method == nix.Git:
		return nil, nil, nix.Refuse("git hashes are not supported")
	case req.Method.Method == nix.NAR:
		archive, err = io.ReadAll(nar.NewReader(dump))
		return archive, archive, err
	case !req.DumpIsNAR:
		content, err = io.ReadAll(dump)
		return File(string(content)), content, err
	}
	if archive, err = io.ReadAll(nar.NewReader(dump)); err != nil {
		return nil, nil, err
	}
	file, err := nar.SingleFile(bytes.NewReader(archive))
	if err != nil {
		return nil, nil, nix.Refuse("%v", err)
	}
	content, err = io.ReadAll(file)
	return archive, content, err
}

func (m *Memory) checkReferences(info *nix.PathInfo) error {
	for _, ref := range info.References {
		if ref != info.Path && !m.has(ref) {
			return nix.Refuse("path '%s' refers to '%s' which is not valid", info.Path, ref)
		}
	}
	return nil
}

// putNew leaves a valid path as it is.
func (m *Memory) putNew(o Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, valid := m.paths[o.Info.Path]; !valid {
		m.paths[o.Info.Path] = o
	}
}

// AddMultipleToStore implements [nix.Store]. Paths before a bad one stay.
func (m *Memory) AddMultipleToStore(_ context.Context, _ nix.Logger, src nix.PathSource, _ nix.AddOptions) error {
	for {
		info, r, err := src.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := m.receive(info, r); err != nil {
			return err
		}
	}
}

func (m *Memory) receive(info *nix.PathInfo, r io.Reader) error {
	archive, err := io.ReadAll(nar.NewReader(r))
	switch {
	case err != nil:
		return nix.Refuse("add %s: %v", info.Path, err)
	case uint64(len(archive)) != info.NarSize:
		return nix.Refuse("size mismatch importing path '%s'", info.Path)
	case nix.HashBytes(nix.SHA256, archive) != info.NarHash:
		return nix.Refuse("hash mismatch importing path '%s'", info.Path)
	}
	if err := m.checkReferences(info); err != nil {
		return err
	}
	m.putNew(Object{info, archive})
	return nil
}

// BuildDerivation implements [nix.Store].
func (m *Memory) BuildDerivation(ctx context.Context, log nix.Logger, drvPath nix.StorePath, drv *nix.BasicDerivation, _ nix.BuildMode) (*nix.BuildResult, error) {
	for _, input := range drv.InputSrcs {
		if !m.has(input) {
			return nil, nix.Refuse("input %s of %s is not valid", input, drvPath)
		}
	}
	if m.Build == nil {
		return nix.Failure(nix.StatusMiscFailure, "nothing builds %s here", drvPath), nil
	}
	return m.Build(ctx, log, drv)
}

// BuildPathsWithResults implements [nix.Store] for paths that are valid. Nothing
// is substituted and no .drv file is read.
func (m *Memory) BuildPathsWithResults(_ context.Context, _ nix.Logger, targets []nix.DerivedPath, _ nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	results := make([]nix.KeyedBuildResult, len(targets))
	for i, target := range targets {
		results[i] = nix.KeyedBuildResult{Target: target, Result: m.realise(target)}
	}
	return results, nil
}

func (m *Memory) realise(target nix.DerivedPath) *nix.BuildResult {
	switch {
	case target.Built:
		return nix.Failure(nix.StatusMiscFailure, "nothing builds %s here", target.Path)
	case !m.has(target.Path):
		return nix.Failure(nix.StatusNoSubstituters, "path %s is not valid", target.Path)
	}
	return &nix.BuildResult{Status: nix.StatusAlreadyValid}
}

// AddTempRoots implements [nix.TempRooter].
func (m *Memory) AddTempRoots(_ context.Context, paths []nix.StorePath) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.roots = append(m.roots, paths...)
	return nil
}

// QueryReferrers implements [nix.PathFinder].
func (m *Memory) QueryReferrers(_ context.Context, path nix.StorePath) ([]nix.StorePath, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []nix.StorePath
	for p, o := range m.paths {
		if slices.Contains(o.Info.References, path) {
			found = append(found, p)
		}
	}
	return nix.SortPaths(found), nil
}

// QueryValidDerivers implements [nix.PathFinder].
func (m *Memory) QueryValidDerivers(_ context.Context, path nix.StorePath) ([]nix.StorePath, error) {
	o, err := m.Get(path)
	if err != nil || o.Info.Deriver.IsZero() {
		return nil, err
	}
	return []nix.StorePath{o.Info.Deriver}, nil
}

// QueryPathFromHashPart implements [nix.PathFinder].
func (m *Memory) QueryPathFromHashPart(_ context.Context, hashPart string) (nix.StorePath, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.paths {
		if p.HashPart() == hashPart {
			return p, nil
		}
	}
	return nix.StorePath{}, nix.ErrNotFound
}

// QueryAllValidPaths implements [nix.PathLister].
func (m *Memory) QueryAllValidPaths(context.Context) ([]nix.StorePath, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Keys(m.paths), nix.StorePath.Compare), nil
}

// AddSignatures implements [nix.SignatureAdder].
func (m *Memory) AddSignatures(_ context.Context, path nix.StorePath, sigs []string) error {
	o, err := m.Get(path)
	if err != nil {
		return err
	}
	info := o.Info.Clone()
	for _, text := range sigs {
		sig, err := nix.ParseSignature(text)
		if err != nil {
			return nix.Refuse("%v", err)
		}
		info.Sigs = append(info.Sigs, sig)
	}
	m.Put(Object{info, o.NAR})
	return nil
}
