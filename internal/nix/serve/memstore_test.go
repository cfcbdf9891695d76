package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
	"nixbastion/internal/nix/storetest"
)

// memStore is a store in memory that implements everything the protocol has. It
// records what it was asked and answers what a test sets; paths it takes as they
// come.
type memStore struct {
	*storetest.Memory

	outputs    map[nix.StorePath]map[string]nix.StorePath
	drv        *nix.BasicDerivation
	targets    []nix.DerivedPath
	mode       nix.BuildMode
	limits     []nix.BuildLimits
	added      []nix.AddOptions
	substitute []bool

	// build, if set, answers BuildDerivation.
	build func(ctx context.Context, log nix.Logger) (*nix.BuildResult, error)
	// add, if set, answers AddMultipleToStore.
	add func(ctx context.Context, log nix.Logger, src nix.PathSource) error
	// results, if set, answer BuildPathsWithResults.
	results []nix.KeyedBuildResult
}

// coreStore hides the optional abilities of a store.
type coreStore struct{ nix.Store }

func newMemStore() *memStore {
	return &memStore{Memory: storetest.NewMemory(), outputs: make(map[nix.StorePath]map[string]nix.StorePath)}
}

// storeWithPaths has somePaths.
func storeWithPaths() *memStore {
	m := newMemStore()
	for _, o := range somePaths() {
		m.Put(o)
	}
	return m
}

func (m *memStore) QueryValidPaths(ctx context.Context, paths []nix.StorePath, substitute bool) ([]nix.StorePath, error) {
	m.substitute = append(m.substitute, substitute)
	if slices.ContainsFunc(paths, nix.StorePath.IsZero) {
		return nil, errors.New("asked about no path")
	}
	return m.Memory.QueryValidPaths(ctx, paths, substitute)
}

func (m *memStore) AddMultipleToStore(ctx context.Context, log nix.Logger, src nix.PathSource, opts nix.AddOptions) error {
	m.added = append(m.added, opts)
	if m.add != nil {
		return m.add(ctx, log, src)
	}
	for {
		info, r, err := src.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(nar.NewReader(r))
		if err != nil {
			return fmt.Errorf("add %s: %w", info.Path, err)
		}
		m.Put(storetest.Object{Info: info, NAR: content})
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

func (m *memStore) SetBuildLimits(limits nix.BuildLimits) { m.limits = append(m.limits, limits) }

func (m *memStore) QueryDerivationOutputMap(_ context.Context, drvPath nix.StorePath) (map[string]nix.StorePath, error) {
	outputs, ok := m.outputs[drvPath]
	if !ok {
		return nil, nix.ErrNotFound
	}
	return outputs, nil
}

// The values that tests send.

// pathNamed makes a path of which only the name matters.
func pathNamed(name string) nix.StorePath { return storetest.Path(name) }

// someMessages are what a build logs, and someText what of it is text.
var someMessages = []nix.LogMessage{
	{Kind: nix.LogStartActivity, ID: 1 << 40, Level: nix.LevelInfo, Type: nix.ActivityBuild, Parent: 7, Text: "building",
		Fields: []nix.LogField{nix.TextField("/nix/store/x.drv"), nix.TextField(""), nix.IntField(1), nix.IntField(1)}},
	{Kind: nix.LogResult, ID: 1 << 40, Type: nix.ResultSetPhase, Fields: []nix.LogField{nix.TextField("buildPhase")}},
	{Kind: nix.LogResult, ID: 1 << 40, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField("line one")}},
	{Kind: nix.LogResult, ID: 1 << 40, Type: nix.ResultProgress, Fields: []nix.LogField{nix.IntField(1), nix.IntField(2), nix.IntField(3), nix.IntField(4)}},
	{Kind: nix.LogText, Text: "for the terminal\n"},
	{Kind: nix.LogText, Text: "without an end"},
	{Kind: nix.LogResult, ID: 1 << 40, Type: nix.ResultPostBuildLogLine, Fields: []nix.LogField{nix.TextField("\x1b[1mhook\x1b[0m")}},
	{Kind: nix.LogResult, ID: 1 << 40, Type: nix.ResultBuildLogLine},
	{Kind: nix.LogStopActivity, ID: 1 << 40},
}

const someText = "line one\nfor the terminal\nwithout an end\x1b[1mhook\x1b[0m\n"

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

// somePaths are uploads with everything that a path info can have: dep, and big
// that refers to it and to itself.
var somePaths = sync.OnceValue(func() []storetest.Object {
	dep := storetest.NewObject("dep", "dep")
	dep.Info.RegistrationTime = 1700000000
	dep.Info.CA = mustCA("fixed:r:" + dep.Info.NarHash.String())
	big := storetest.NewObject("big", strings.Repeat("0123456789", 100_000), dep.Info.Path, pathNamed("big"))
	big.Info.Ultimate = true
	big.Info.Sigs = []nix.Signature{mustSig("a-1:" + strings.Repeat("A", 86) + "=="), mustSig("b-1:" + strings.Repeat("A", 86) + "==")}
	return []storetest.Object{dep, big}
})

// asReplied drops what a reply does not tell of a path at a version.
func asReplied(v Version, info *nix.PathInfo) *nix.PathInfo {
	info = info.Clone()
	info.RegistrationTime, info.Ultimate = 0, false
	if v < sinceNarHash {
		info.NarHash, info.CA, info.Sigs = nix.Hash{}, nix.ContentAddress{}, nil
	}
	return info
}

// asUploaded drops what an upload does not tell of a path at a version.
func asUploaded(v Version, o storetest.Object) storetest.Object {
	info := o.Info.Clone()
	if v < sinceAddToStoreNar {
		info.RegistrationTime, info.Ultimate, info.CA, info.Sigs = 0, false, nix.ContentAddress{}, nil
	}
	return storetest.Object{Info: info, NAR: slices.Clone(o.NAR)}
}

func mustSig(s string) nix.Signature {
	sig, err := nix.ParseSignature(s)
	if err != nil {
		panic(err)
	}
	return sig
}

func mustCA(s string) nix.ContentAddress {
	ca, err := nix.ParseContentAddress(s)
	if err != nil {
		panic(err)
	}
	return ca
}
