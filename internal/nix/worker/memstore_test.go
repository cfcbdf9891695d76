package worker

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
	"nixbastion/internal/nix/storetest"
)

// memStore is a store in memory that implements everything the protocol has. It
// records what it was asked and answers what a test sets; paths it takes as they
// come.
type memStore struct {
	*storetest.Memory

	roots        []nix.StorePath
	options      nix.ClientOptions
	realisations map[nix.DrvOutput]nix.Realisation
	outputs      map[nix.StorePath]map[string]nix.StorePath
	drv          *nix.BasicDerivation
	targets      []nix.DerivedPath
	mode         nix.BuildMode
	added        []nix.AddOptions

	// build, if set, answers BuildDerivation.
	build func(ctx context.Context, log nix.Logger) (*nix.BuildResult, error)
	// add, if set, answers AddMultipleToStore.
	add func(ctx context.Context, log nix.Logger, src nix.PathSource) error
	// results, if set, answer BuildPathsWithResults.
	results []nix.KeyedBuildResult
}

type memPath struct {
	info *nix.PathInfo
	nar  []byte
}

// coreStore hides the optional abilities of a store.
type coreStore struct{ nix.Store }

func newMemStore() *memStore {
	return &memStore{
		Memory:       storetest.NewMemory(),
		realisations: make(map[nix.DrvOutput]nix.Realisation),
		outputs:      make(map[nix.StorePath]map[string]nix.StorePath),
	}
}

func (m *memStore) put(info *nix.PathInfo, nar []byte) { m.Put(storetest.Object{Info: info, NAR: nar}) }

// at returns what the store has at a path, nothing if it is not valid.
func (m *memStore) at(path nix.StorePath) memPath {
	o, err := m.Get(path)
	if err != nil {
		return memPath{}
	}
	return memPath{o.Info, o.NAR}
}

func (m *memStore) AddToStore(_ context.Context, _ nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	content, err := io.ReadAll(dump)
	if err != nil {
		return nil, err
	}
	if !req.DumpIsNAR && req.Method.Method != nix.NAR {
		content = narOf(string(content))
	}
	info := infoOf(req.Name, content, req.References...)
	m.put(info, content)
	return info, nil
}

func (m *memStore) AddMultipleToStore(ctx context.Context, log nix.Logger, src nix.PathSource, opts nix.AddOptions) error {
	m.added = append(m.added, opts)
	if m.add != nil {
		return m.add(ctx, log, src)
	}
	for n := uint64(0); ; n++ {
		info, r, err := src.Next()
		if err == io.EOF && n == src.Count {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(nar.NewReader(r))
		if err != nil {
			return fmt.Errorf("add %s: %w", info.Path, err)
		}
		m.put(info, content)
		nix.Line(log, "added "+info.Path.Name())
	}
}

func (m *memStore) BuildDerivation(ctx context.Context, log nix.Logger, _ nix.StorePath, drv *nix.BasicDerivation, mode nix.BuildMode) (*nix.BuildResult, error) {
	m.drv, m.mode = drv, mode
	if m.build != nil {
		return m.build(ctx, log)
	}
	for _, msg := range someMessages {
		log.Log(msg)
	}
	return someResult(), nil
}

func (m *memStore) BuildPathsWithResults(_ context.Context, _ nix.Logger, targets []nix.DerivedPath, mode nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	m.targets, m.mode = targets, mode
	if m.results != nil {
		return m.results, nil
	}
	results := make([]nix.KeyedBuildResult, len(targets))
	for i, t := range targets {
		results[i] = nix.KeyedBuildResult{Target: t, Result: someResult()}
	}
	return results, nil
}

func (m *memStore) AddTempRoots(_ context.Context, paths []nix.StorePath) error {
	m.roots = append(m.roots, paths...)
	return nil
}

func (m *memStore) QueryMissing(_ context.Context, targets []nix.DerivedPath) (*nix.Missing, error) {
	m.targets = targets
	return someMissing, nil
}

func (m *memStore) QueryDerivationOutputMap(_ context.Context, drvPath nix.StorePath) (map[string]nix.StorePath, error) {
	outputs, ok := m.outputs[drvPath]
	if !ok {
		return nil, nix.ErrNotFound
	}
	return outputs, nil
}

func (m *memStore) RegisterDrvOutput(_ context.Context, r nix.Realisation) error {
	m.realisations[r.ID] = r
	return nil
}

func (m *memStore) QueryRealisation(_ context.Context, id nix.DrvOutput) (*nix.Realisation, error) {
	r, ok := m.realisations[id]
	if !ok {
		return nil, nix.ErrNotFound
	}
	return &r, nil
}

func (m *memStore) SetOptions(_ context.Context, opts nix.ClientOptions) error {
	m.options = opts
	return nil
}

// The values that tests send.

// pathNamed makes a path of which only the name matters.
func pathNamed(name string) nix.StorePath { return storetest.Path(name) }

func narOf(content string) []byte { return storetest.File(content) }

func infoOf(name string, content []byte, refs ...nix.StorePath) *nix.PathInfo {
	return &nix.PathInfo{
		Path: pathNamed(name), Deriver: pathNamed(name + ".drv"), NarHash: nix.HashBytes(nix.SHA256, content),
		NarSize: uint64(len(content)), References: nix.SortPaths(slices.Clone(refs)), RegistrationTime: 1700000000,
	}
}

var someMessages = []nix.LogMessage{
	{Kind: nix.LogStartActivity, ID: 1 << 40, Level: nix.LevelInfo, Type: nix.ActivityBuild, Parent: 7, Text: "building",
		Fields: []nix.LogField{nix.TextField("/nix/store/x.drv"), nix.TextField(""), nix.IntField(1), nix.IntField(1)}},
	{Kind: nix.LogResult, ID: 1 << 40, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField("line one")}},
	{Kind: nix.LogText, Text: "for the terminal\n"},
	{Kind: nix.LogStopActivity, ID: 1 << 40},
}

func someResult() *nix.BuildResult {
	user := int64(1234567)
	return &nix.BuildResult{
		Status: nix.StatusBuilt, TimesBuilt: 1, IsNonDeterministic: true, StartTime: 1700000001, StopTime: 1700000002, CPUUser: &user,
		Outputs: []nix.BuiltOutput{
			{Name: "dev", DrvHash: "sha256:" + strings.Repeat("ab", 32), Path: pathNamed("out-dev"), Sigs: []string{"k:c2ln"}},
			{Name: "out", DrvHash: "sha256:" + strings.Repeat("ab", 32), Path: pathNamed("out")},
		},
	}
}

func someDerivation() *nix.BasicDerivation {
	return &nix.BasicDerivation{
		Outputs: []nix.DerivationOutput{
			{Name: "dev", Path: pathNamed("out-dev")},
			{Name: "float", HashAlgo: "r:sha256"},
			{Name: "out", Path: pathNamed("out"), HashAlgo: "sha256", Hash: strings.Repeat("0", 64)},
		},
		InputSrcs: nix.SortPaths([]nix.StorePath{pathNamed("src"), pathNamed("dep")}),
		Platform:  "x86_64-linux", Builder: "/bin/sh", Args: []string{"-c", "echo > $out"},
		Env: []nix.EnvVar{{Name: "out", Value: pathNamed("out").String()}, {Name: "z", Value: "1"}, {Name: "a", Value: strings.Repeat("long ", 3000)}},
	}
}

var someMissing = &nix.Missing{
	WillBuild: []nix.StorePath{pathNamed("b.drv")}, WillSubstitute: []nix.StorePath{pathNamed("s")},
	Unknown: []nix.StorePath{pathNamed("u")}, DownloadSize: 5, NarSize: 1 << 40,
}
