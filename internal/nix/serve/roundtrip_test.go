package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served is a client with a server at the other end of a pipe that holds nothing
// back: each side's write waits for the other's read.
type served struct {
	*Client
	stderr bytes.Buffer // of the server; read it between commands
	done   chan error
}

// dial starts a server of the store and shakes hands with it.
func dial(t testing.TB, store nix.Store, opts ClientOptions, serverOpts ServeOptions) *served {
	t.Helper()
	near, far := net.Pipe()
	s := &served{done: make(chan error, 1)}
	if serverOpts.Stderr == nil {
		serverOpts.Stderr = &s.stderr
	}
	go func() {
		defer far.Close()
		s.done <- Serve(context.Background(), far, store, serverOpts)
	}()
	c, err := NewClient(context.Background(), near, opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Client = c
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

// versions are all that this package speaks.
func versions() (all []Version) {
	for v := Oldest; v <= Latest; v++ {
		all = append(all, v)
	}
	return all
}

// at makes options of both sides that agree on a version.
func at(v Version) (ClientOptions, ServeOptions) {
	return ClientOptions{version: v, least: Oldest}, ServeOptions{version: Latest, Write: true}
}

// Guards against a message whose reader and writer disagree at some version, in
// any command that the client has.
func TestEveryCommandRoundTripsAtEveryVersion(t *testing.T) {
	for _, v := range versions() {
		t.Run(v.String(), func(t *testing.T) {
			store := newMemStore()
			clientOpts, serverOpts := at(v)
			serverOpts.SpoolDir = t.TempDir()
			c := dial(t, store, clientOpts, serverOpts)
			same(t, "version", c.Version(), v)
			testUpload(t, c, store)
			testQueries(t, c, store)
			testBuild(t, c, store)
			if !c.Reusable() {
				t.Error("session is not reusable after all commands succeeded")
			}
			check(t, "end of the session", c.hangUp())
		})
	}
}

func testUpload(t *testing.T, c *served, store *memStore) {
	ctx, paths := context.Background(), somePaths()
	check(t, "upload", c.AddMultipleToStore(ctx, nix.Discard, storetest.Upload(paths...), nix.AddOptions{}))
	same(t, "options", store.added, []nix.AddOptions{{DontCheckSigs: true}, {DontCheckSigs: true}})
	same(t, "log", c.stderr.String(), "added dep\nadded big\n")
	check(t, "empty upload", c.AddMultipleToStore(ctx, nix.Discard, storetest.Upload(), nix.AddOptions{}))
	for _, p := range paths {
		got, err := store.Get(p.Info.Path)
		check(t, "uploaded path", err)
		same(t, "uploaded", got, asUploaded(c.version, p))
		store.Put(p)
		info, err := c.QueryPathInfo(ctx, p.Info.Path)
		check(t, "query path info", err)
		same(t, "path info", info, asReplied(c.version, p.Info))
		r, err := c.NarFromPath(ctx, p.Info.Path)
		check(t, "nar from path", err)
		read, err := io.ReadAll(r)
		check(t, "read nar", errors.Join(err, r.Close()))
		if !bytes.Equal(read, p.NAR) {
			t.Errorf("NAR of %s differs", p.Info.Path)
		}
	}
}

func testQueries(t *testing.T, c *served, store *memStore) {
	ctx, paths := context.Background(), somePaths()
	dep, big, absent := paths[0].Info, paths[1].Info, pathNamed("absent")
	both := nix.SortPaths([]nix.StorePath{dep.Path, big.Path})

	store.substitute = nil
	valid, err := c.QueryValidPaths(ctx, []nix.StorePath{big.Path, absent, dep.Path, dep.Path}, true)
	check(t, "query valid paths", err)
	same(t, "valid paths", valid, both)
	same(t, "substitute", store.substitute, []bool{true})
	valid, err = c.QueryValidPaths(ctx, nil, false)
	check(t, "query no valid paths", err)
	same(t, "none of no paths are valid", len(valid), 0)

	_, err = c.QueryPathInfo(ctx, absent)
	same(t, "absent path is not found", errors.Is(err, nix.ErrNotFound), true)
	_, err = c.NarFromPath(ctx, absent)
	same(t, "NAR of an absent path is not found", errors.Is(err, nix.ErrNotFound), true)
	infos, err := c.QueryPathInfos(ctx, []nix.StorePath{big.Path, absent, dep.Path, big.Path})
	check(t, "query path infos", err)
	same(t, "path infos", infos, []*nix.PathInfo{asReplied(c.version, big), nil, asReplied(c.version, dep), asReplied(c.version, big)})

	many := make([]nix.StorePath, 2*infoBatch+1)
	for i := range many {
		many[i] = pathNamed("many" + strings.Repeat("x", i%100))
	}
	many[len(many)-1] = big.Path
	infos, err = c.QueryPathInfos(ctx, many)
	check(t, "query many path infos", err)
	same(t, "number of path infos", len(infos), len(many))
	same(t, "the last path info", infos[len(many)-1], asReplied(c.version, big))
}

func testBuild(t *testing.T, c *served, store *memStore) {
	ctx, drv := context.Background(), someDerivation()
	c.stderr.Reset()
	result, err := c.BuildDerivation(ctx, nil, pathNamed("x.drv"), drv, nix.BuildNormal)
	check(t, "build derivation", err)
	same(t, "derivation", store.drv, drv)
	same(t, "mode", store.mode, nix.BuildNormal)
	same(t, "limits", store.limits, []nix.BuildLimits{{}})
	same(t, "log", c.stderr.String(), someText)
	same(t, "result", result, asSentAt(c.version, someResult()))
}

// asSentAt drops what a version has no words for.
func asSentAt(v Version, r *nix.BuildResult) *nix.BuildResult {
	r.CPUUser = nil
	if v < sinceBuildTimes {
		r.TimesBuilt, r.IsNonDeterministic, r.StartTime, r.StopTime = 0, false, 0, 0
	}
	if v < sinceBuiltOutputs {
		r.Outputs = nil
	}
	for i := range r.Outputs {
		if v >= sinceOutputNames {
			r.Outputs[i].DrvHash = ""
		} else if r.Outputs[i].Sigs == nil {
			r.Outputs[i].Sigs = []string{}
		}
	}
	return r
}

// Guards against paths of a build being collected between question and build,
// and against a question that was answered with what has changed since.
func TestTemporaryRootsTellWhatIsValidOnce(t *testing.T) {
	ctx, store := context.Background(), newMemStore()
	c := dial(t, store, ClientOptions{}, ServeOptions{Write: true})
	dep, big := somePaths()[0], somePaths()[1]
	store.Put(dep)
	asked := []nix.StorePath{big.Info.Path, dep.Info.Path}
	check(t, "add temporary roots", c.AddTempRoots(ctx, asked))
	same(t, "roots", store.Roots(), nix.SortPaths(slices.Clone(asked)))

	questions := len(store.substitute)
	valid, err := c.QueryValidPaths(ctx, asked, false)
	check(t, "query valid paths", err)
	same(t, "valid", valid, []nix.StorePath{dep.Info.Path})
	same(t, "further questions", len(store.substitute)-questions, 0)

	store.Put(big)
	valid, err = c.QueryValidPaths(ctx, asked, false)
	check(t, "query valid paths again", err)
	same(t, "valid afterwards", valid, nix.SortPaths(slices.Clone(asked)))

	check(t, "add temporary roots", c.AddTempRoots(ctx, asked))
	check(t, "upload", c.AddMultipleToStore(ctx, nix.Discard, storetest.Upload(big), nix.AddOptions{}))
	questions = len(store.substitute)
	_, err = c.QueryValidPaths(ctx, asked, false)
	check(t, "query valid paths after an upload", err)
	same(t, "questions after an upload", len(store.substitute)-questions, 1)
}

// Guards against a wish that the protocol has no words for being sent as another.
func TestWhatCannotBeSaidIsRefused(t *testing.T) {
	ctx := context.Background()
	c := dial(t, newMemStore(), ClientOptions{}, ServeOptions{Write: true})
	_, addErr := c.AddToStore(ctx, nix.Discard, nix.AddToStoreRequest{}, strings.NewReader(""))
	_, buildErr := c.BuildPathsWithResults(ctx, nix.Discard, nil, nix.BuildNormal)
	_, checkErr := c.BuildDerivation(ctx, nix.Discard, pathNamed("x.drv"), someDerivation(), nix.BuildCheck)
	repairErr := c.AddMultipleToStore(ctx, nix.Discard, storetest.Upload(), nix.AddOptions{Repair: true})
	for what, err := range map[string]error{"AddToStore": addErr, "BuildPathsWithResults": buildErr, "check": checkErr, "repair": repairErr} {
		var user *nix.UserError
		if !errors.As(err, &user) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !c.Reusable() {
		t.Error("session is not reusable")
	}
}
