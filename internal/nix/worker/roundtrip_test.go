package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"nixbastion/internal/nix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served is a client with a server at the other end of a pipe that holds nothing
// back: each side's write waits for the other's read.
type served struct {
	*Client
	done chan error
}

// dial starts a server of the store and shakes hands with it.
func dial(t testing.TB, store nix.Store, opts ClientOptions, serverOpts ServeOptions) *served {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() {
		defer far.Close()
		done <- Serve(context.Background(), far, store, serverOpts)
	}()
	c, err := NewClient(context.Background(), near, opts)
	if err != nil {
		t.Fatal(err)
	}
	s := &served{Client: c, done: done}
	t.Cleanup(func() { s.hangUp() })
	return s
}

// hangUp closes the client's side and returns what the server returned.
func (s *served) hangUp() error {
	s.Close()
	err := <-s.done
	s.done <- err
	return err
}

// logRecorder keeps log messages in order.
type logRecorder struct {
	mu       sync.Mutex
	messages []nix.LogMessage
}

func (l *logRecorder) Log(m nix.LogMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages = append(l.messages, m)
}

// sourceOf offers infos with their NARs for upload.
func sourceOf(paths ...memPath) nix.PathSource {
	return nix.PathSource{Count: uint64(len(paths)), Next: func() (*nix.PathInfo, io.Reader, error) {
		if len(paths) == 0 {
			return nil, nil, io.EOF
		}
		p := paths[0]
		paths = paths[1:]
		return p.info, bytes.NewReader(p.nar), nil
	}}
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

// somePaths are uploads with everything that a path info can have.
var somePaths = sync.OnceValue(func() []memPath {
	dep := narOf("dep")
	big := narOf(strings.Repeat("0123456789", 100_000))
	depInfo := infoOf("dep", dep)
	depInfo.CA = mustCA("fixed:r:" + depInfo.NarHash.String())
	bigInfo := infoOf("big", big, depInfo.Path, pathNamed("big"))
	bigInfo.Ultimate = true
	bigInfo.Sigs = []nix.Signature{mustSig("a-1:" + strings.Repeat("A", 86) + "=="), mustSig("b-1:" + strings.Repeat("A", 86) + "==")}
	return []memPath{{depInfo, dep}, {bigInfo, big}}
})

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

// dialects are all versions, and at the newest one both features.
func dialects() map[string]ClientOptions {
	all := make(map[string]ClientOptions)
	for v := Oldest; v <= Latest; v++ {
		all[v.String()] = ClientOptions{Version: v, MinVersion: Oldest}
	}
	all["1.38 with features"] = ClientOptions{Features: allFeatures}
	return all
}

var allFeatures = []string{FeatureRealisationPaths, FeatureDeleteReferrers}

// Guards against a message whose reader and writer disagree at some version, in
// any operation that the client has.
func TestEveryOperationRoundTripsAtEveryVersion(t *testing.T) {
	for name, opts := range dialects() {
		t.Run(name, func(t *testing.T) {
			store := newMemStore()
			c := dial(t, store, opts, ServeOptions{DaemonVersion: "2.34.8 (test)", Trust: nix.Trusted, Features: allFeatures})
			testHandshake(t, c)
			testUpload(t, c, store)
			testQueries(t, c, store)
			testAddToStore(t, c, store)
			testBuilds(t, c, store)
			testOutputsOfDerivations(t, c, store)
			if !c.Reusable() {
				t.Error("session is not reusable after all operations succeeded")
			}
			check(t, "end of the session", c.hangUp())
		})
	}
}

// A reader of NARs who knows their size stops at the last byte and closes, without
// a Read that returns io.EOF. Guards against taking that for a NAR that was given
// up in the middle, which ends the session: the second output of a build would
// never arrive.
func TestNarThatWasReadToItsLastByteLeavesTheSession(t *testing.T) {
	store := newMemStore()
	c := dial(t, store, ClientOptions{}, ServeOptions{Trust: nix.Trusted})
	ctx, paths := context.Background(), somePaths()
	check(t, "upload", c.AddMultipleToStore(ctx, &logRecorder{}, sourceOf(paths...), nix.AddOptions{}))
	for _, p := range paths {
		r, err := c.NarFromPath(ctx, p.info.Path)
		check(t, "nar from path", err)
		_, err = io.ReadFull(r, make([]byte, p.info.NarSize))
		check(t, "read nar", errors.Join(err, r.Close()))
	}
	if !c.Reusable() {
		t.Error("session is not reusable")
	}
	_, err := c.QueryPathInfo(ctx, paths[0].info.Path)
	check(t, "query path info", err)
	check(t, "end of the session", c.hangUp())
}

func testHandshake(t *testing.T, c *served) {
	if c.version >= sinceDaemonVersion && c.DaemonVersion() != "2.34.8 (test)" {
		t.Errorf("daemon version %q", c.DaemonVersion())
	}
	if c.version >= sinceTrust && c.Trust() != nix.Trusted {
		t.Errorf("trust %d", c.Trust())
	}
}

func testUpload(t *testing.T, c *served, store *memStore) {
	ctx, paths := context.Background(), somePaths()
	log := &logRecorder{}
	check(t, "upload", c.AddMultipleToStore(ctx, log, sourceOf(paths...), nix.AddOptions{DontCheckSigs: true}))
	same(t, "options", store.added[0], nix.AddOptions{DontCheckSigs: true})
	same(t, "number of log messages", len(log.messages), len(paths))
	check(t, "empty upload", c.AddMultipleToStore(ctx, log, sourceOf(), nix.AddOptions{}))
	for _, p := range paths {
		same(t, "uploaded", store.at(p.info.Path), p)
		info, err := c.QueryPathInfo(ctx, p.info.Path)
		check(t, "query path info", err)
		same(t, "path info", info, p.info)
		r, err := c.NarFromPath(ctx, p.info.Path)
		check(t, "nar from path", err)
		got, err := io.ReadAll(r)
		check(t, "read nar", errors.Join(err, r.Close()))
		if !bytes.Equal(got, p.nar) {
			t.Errorf("NAR of %s differs", p.info.Path)
		}
	}
}

func testQueries(t *testing.T, c *served, store *memStore) {
	ctx, paths := context.Background(), somePaths()
	dep, big, absent := paths[0].info, paths[1].info, pathNamed("absent")

	valid, err := c.QueryValidPaths(ctx, []nix.StorePath{big.Path, absent, dep.Path}, true)
	check(t, "query valid paths", err)
	same(t, "valid paths", valid, nix.SortPaths([]nix.StorePath{dep.Path, big.Path}))

	_, err = c.QueryPathInfo(ctx, absent)
	same(t, "absent path is not found", errors.Is(err, nix.ErrNotFound), true)
	infos, err := c.QueryPathInfos(ctx, []nix.StorePath{big.Path, absent, dep.Path})
	check(t, "query path infos", err)
	same(t, "path infos", infos, []*nix.PathInfo{big, nil, dep})

	referrers, err := c.QueryReferrers(ctx, dep.Path)
	check(t, "query referrers", err)
	same(t, "referrers", referrers, []nix.StorePath{big.Path})
	derivers, err := c.QueryValidDerivers(ctx, dep.Path)
	check(t, "query derivers", err)
	same(t, "derivers", derivers, []nix.StorePath{dep.Deriver})
	found, err := c.QueryPathFromHashPart(ctx, dep.Path.HashPart())
	check(t, "query hash part", err)
	same(t, "path of hash part", found, dep.Path)
	_, err = c.QueryPathFromHashPart(ctx, absent.HashPart())
	same(t, "absent hash part is not found", errors.Is(err, nix.ErrNotFound), true)
	all, err := c.QueryAllValidPaths(ctx)
	check(t, "query all", err)
	same(t, "all paths", all, valid)
	var walked []nix.StorePath
	check(t, "walk all", c.WalkAllValidPaths(ctx, len(valid), func(path nix.StorePath) { walked = append(walked, path) }))
	same(t, "walked paths", walked, valid)

	roots := make([]nix.StorePath, 2*pipelineBatch+1)
	for i := range roots {
		roots[i] = pathNamed("root" + strings.Repeat("x", i%100))
	}
	check(t, "add temp roots", c.AddTempRoots(ctx, roots))
	same(t, "roots", store.roots, roots)

	sig := "c-1:" + strings.Repeat("A", 86) + "=="
	check(t, "add signatures", c.AddSignatures(ctx, dep.Path, []string{sig}))
	same(t, "signatures", store.at(dep.Path).info.Sigs, []nix.Signature{mustSig(sig)})
	opts := nix.ClientOptions{KeepGoing: true, Verbosity: 3, MaxBuildJobs: 4, MaxSilentTime: 5, BuildCores: 6, UseSubstitutes: true, Overrides: map[string]string{"timeout": "7"}}
	check(t, "set options", c.SetOptions(ctx, opts))
	same(t, "options", store.options, opts)
}

func testAddToStore(t *testing.T, c *served, store *memStore) {
	ctx := context.Background()
	refs := []nix.StorePath{pathNamed("dep")}
	text := nix.AddToStoreRequest{Name: "text", Method: textMethod, References: refs}
	info, err := c.AddToStore(ctx, nix.Discard, text, strings.NewReader("hello"))
	check(t, "add text", err)
	same(t, "text", info, infoOf("text", narOf("hello"), refs...))

	tree := nix.AddToStoreRequest{Name: "tree", Method: nix.ContentAddressMethod{Method: nix.NAR, Algo: nix.SHA256}}
	info, err = c.AddToStore(ctx, nix.Discard, tree, bytes.NewReader(narOf("tree")))
	check(t, "add tree", err)
	same(t, "tree", info, infoOf("tree", narOf("tree")))

	flat := nix.AddToStoreRequest{Name: "flat", Method: nix.ContentAddressMethod{Method: nix.Flat, Algo: nix.SHA1}}
	content := "flat"
	if c.version < sinceContentMethod {
		flat.DumpIsNAR = true
		content = string(narOf("flat"))
	}
	info, err = c.AddToStore(ctx, nix.Discard, flat, strings.NewReader(content))
	check(t, "add flat", err)
	same(t, "flat", info, infoOf("flat", narOf("flat")))
}

func testBuilds(t *testing.T, c *served, store *memStore) {
	ctx, drv, log := context.Background(), someDerivation(), &logRecorder{}
	result, err := c.BuildDerivation(ctx, log, pathNamed("x.drv"), drv, nix.BuildCheck)
	check(t, "build derivation", err)
	same(t, "derivation", store.drv, drv)
	same(t, "mode", store.mode, nix.BuildCheck)
	same(t, "log", log.messages, someMessages)
	same(t, "result", result, asSentAt(c.conn, someResult()))

	targets := []nix.DerivedPath{{Path: pathNamed("x.drv"), Built: true}, {Path: pathNamed("y.drv"), Built: true, Outputs: []string{"dev", "out"}}, {Path: pathNamed("z")}}
	if c.version >= sinceDerivedPaths {
		targets = append(targets, nix.DerivedPath{Path: pathNamed("x.drv")})
	}
	results, err := c.BuildPathsWithResults(ctx, nix.Discard, targets, nix.BuildNormal)
	check(t, "build paths", err)
	same(t, "targets", store.targets, targets)
	for i, target := range targets {
		same(t, "target of result", results[i].Target, target)
		if c.version >= sinceBuildResults {
			same(t, "result", results[i].Result, asSentAt(c.conn, someResult()))
		} else {
			same(t, "status", results[i].Result.Status, nix.StatusBuilt)
		}
	}
	missing, err := c.QueryMissing(ctx, targets)
	check(t, "query missing", err)
	same(t, "missing", missing, someMissing)
	same(t, "targets", store.targets, targets)
}

// asSentAt drops what a version has no words for.
func asSentAt(c conn, r *nix.BuildResult) *nix.BuildResult {
	if c.version < sinceBuildTimes {
		r.TimesBuilt, r.IsNonDeterministic, r.StartTime, r.StopTime = 0, false, 0, 0
	}
	if c.version < sinceCPUTimes {
		r.CPUUser = nil
	}
	if c.version < sinceBuiltOutputs {
		r.Outputs = nil
	}
	for i := range r.Outputs {
		if c.has(FeatureRealisationPaths) {
			r.Outputs[i].DrvHash = ""
		} else if r.Outputs[i].Sigs == nil {
			r.Outputs[i].Sigs = []string{}
		}
	}
	return r
}

func testOutputsOfDerivations(t *testing.T, c *served, store *memStore) {
	ctx, drv := context.Background(), pathNamed("x.drv")
	store.outputs[drv] = map[string]nix.StorePath{"out": pathNamed("out"), "float": {}}
	outputs, err := c.QueryDerivationOutputMap(ctx, drv)
	if c.version < sinceOutputMap {
		same(t, "output map is refused", err != nil, true)
	} else {
		check(t, "query output map", err)
		same(t, "output map", outputs, store.outputs[drv])
		_, err = c.QueryDerivationOutputMap(ctx, pathNamed("absent.drv"))
		same(t, "absent derivation is not found", errors.Is(err, nix.ErrNotFound), true)
	}

	r := nix.Realisation{ID: nix.DrvOutput{DrvHash: "sha256:" + strings.Repeat("cd", 32), Output: "out"}, OutPath: pathNamed("out"), Sigs: []string{"k:c2ln"}}
	switch {
	case c.version < sinceRealisations, c.namesByPath && !c.has(FeatureRealisationPaths):
		same(t, "realisation is refused", c.RegisterDrvOutput(ctx, r) != nil, true)
		return
	case c.has(FeatureRealisationPaths):
		r.ID = nix.DrvOutput{DrvPath: drv, Output: "out"}
	case c.version < sinceRealisationJSON:
		r.Sigs = nil
	}
	_, err = c.QueryRealisation(ctx, r.ID)
	same(t, "absent realisation is not found", errors.Is(err, nix.ErrNotFound), true)
	check(t, "register realisation", c.RegisterDrvOutput(ctx, r))
	got, err := c.QueryRealisation(ctx, r.ID)
	check(t, "query realisation", err)
	same(t, "realisation", *got, r)
	slices.Sort(r.Sigs)
}
