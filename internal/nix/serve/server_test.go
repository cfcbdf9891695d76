package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
	"nixbastion/internal/nix/wire"
)

// rawClient is a client of which the test writes and reads every byte.
type rawClient struct {
	conn
	net.Conn
	done chan error
}

// connect starts a server at the other end of a pipe; nothing was said yet.
func connect(t *testing.T, store nix.Store, opts ServeOptions) *rawClient {
	near, far := net.Pipe()
	c := &rawClient{Conn: near, done: make(chan error, 1)}
	c.conn = conn{r: wire.NewReader(near), w: wire.NewWriter(near), dialect: dialect{version: Latest}, limits: Limits{}.WithDefaults()}
	go func() {
		defer far.Close()
		c.done <- Serve(context.Background(), far, store, opts)
	}()
	t.Cleanup(func() { near.Close() })
	return c
}

// greet shakes hands as a client of c.version.
func (c *rawClient) greet() *rawClient {
	hello(&c.conn)
	c.w.Flush()
	c.r.Expect("the magic", magicServer)
	c.version = min(c.version, Version(c.r.Uint64()))
	return c
}

// ask sends a command with other fields than those of the table.
func (c *rawClient) ask(cmd Command, fields func(*conn)) {
	c.w.Uint64(uint64(cmd))
	fields(&c.conn)
	c.w.Flush()
}

// askUsual sends a request of the table.
func (c *rawClient) askUsual(cmd Command) { c.ask(cmd, requests[cmd]) }

// expectUsable asks something simple of a store with paths.
func (c *rawClient) expectUsable(t *testing.T) {
	t.Helper()
	c.ask(cmdQueryValidPaths, func(c *conn) { zeros(2)(c); pathsRequest(c) })
	valid := c.r.StorePaths(10)
	if c.r.Err() != nil || !slices.Equal(valid, []nix.StorePath{pathNamed("dep")}) {
		t.Errorf("session is not usable: %v, %v", valid, c.r.Err())
	}
}

// expectEnd expects the server to say nothing more and to return a sentence.
func (c *rawClient) expectEnd(t *testing.T, want string) {
	t.Helper()
	if err := <-c.done; err == nil || err.Error() != want {
		t.Errorf("serve: %v, want %s", err, want)
	}
	if c.r.More() {
		t.Error("server says more")
	}
}

// Guards against talking on with a peer that is no Nix client, or one whose
// version nobody here speaks.
func TestServerRefusesOtherPeersAndVersions(t *testing.T) {
	greeting := bytesOf(Announced, func(c *conn) { c.w.Uint64(magicServer); c.w.Uint64(uint64(Announced)) })
	for name, c := range map[string]struct {
		says []byte
		want string
	}{
		"magic":     {bytesOf(Latest, func(c *conn) { c.w.Uint64(42) }), "protocol mismatch: expected the client's magic number 0x390c9deb, got 0x2a (at byte 8)"},
		"worker":    {bytesOf(Latest, func(c *conn) { c.w.Uint64(0x6e697863) }), "protocol mismatch: expected the client's magic number 0x390c9deb, got 0x6e697863 (at byte 8)"},
		"old":       {bytesOf(2<<8, hello), "this Nix client speaks version 2.0 of the serve protocol; 2.1 or a newer 2.x is needed (see Nix's release notes)"},
		"major":     {bytesOf(1<<8|38, hello), "this Nix client speaks version 1.38 of the serve protocol; 2.1 or a newer 2.x is needed (see Nix's release notes)"},
		"truncated": {bytesOf(Latest, hello)[:15], "read the client's version: unexpected EOF"},
	} {
		heard, err := serveAndHangUp(storeWithPaths(), ServeOptions{}, c.says)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
		var version *VersionError
		if errors.As(err, &version) != strings.Contains(c.want, "speaks version") {
			t.Errorf("%s: type of %v", name, err)
		}
		if !bytes.HasPrefix(greeting, heard) {
			t.Errorf("%s: server said %q", name, heard)
		}
	}
}

// Guards against a version in force that one side did not offer, and against one
// announced that real clients were not seen with.
func TestHandshakeAgreesOnTheSmallerVersion(t *testing.T) {
	var agreed Version
	opts := ServeOptions{OnHandshake: func(v Version) { agreed = v }}
	c := dial(t, newMemStore(), ClientOptions{version: 2<<8 | 99}, opts)
	same(t, "version of a newer client", c.Version(), Announced)
	check(t, "serve", c.hangUp())
	same(t, "version that is reported", agreed, Announced)
	c = dial(t, newMemStore(), ClientOptions{version: sinceNarHash}, opts)
	same(t, "version of an older client", c.Version(), sinceNarHash)
	raw := connect(t, newMemStore(), ServeOptions{version: Latest}).greet()
	same(t, "version of the newest", raw.version, Latest)
}

// Guards against a client that is refused after it was greeted: its hook would
// not turn to another machine any more.
func TestRefusalComesInsteadOfTheHandshake(t *testing.T) {
	heard, err := serveAndHangUp(newMemStore(), ServeOptions{Refuse: "no builder is up"}, bytesOf(Latest, hello))
	if err == nil || err.Error() != "no builder is up" || len(heard) > 0 {
		t.Errorf("got %v, heard %q", err, heard)
	}
}

// Guards against a read-only client that changes something: by a command, or by
// the wishes of one that it may use.
func TestWithoutWriteNothingIsImportedBuiltLockedOrFetched(t *testing.T) {
	for cmd, want := range map[Command]string{
		cmdImportPaths: noImport, cmdAddToStoreNar: noImport, cmdBuildPaths: noBuild, cmdBuildDerivation: noBuild,
	} {
		store := storeWithPaths()
		c := connect(t, store, ServeOptions{SpoolDir: t.TempDir()}).greet()
		c.w.Uint64(uint64(cmd)) // that is enough: what follows is not read
		c.w.Flush()
		c.expectEnd(t, want)
		if store.drv != nil || store.targets != nil || store.added != nil {
			t.Errorf("%s was carried out", cmd)
		}
	}
	store := storeWithPaths()
	c := connect(t, store, ServeOptions{}).greet()
	c.askUsual(cmdQueryValidPaths)
	same(t, "valid paths", c.r.StorePaths(10), []nix.StorePath{pathNamed("dep")})
	same(t, "roots", len(store.Roots()), 0)
	same(t, "substitute", store.substitute, []bool{false})
}

// Guards against paths that are asked for before they are safe from collection,
// and against wishes of a client that may have them.
func TestLockComesBeforeTheQuestion(t *testing.T) {
	for name, store := range map[string]nix.Store{"able": storeWithPaths(), "core": coreStore{storeWithPaths()}} {
		c := connect(t, store, ServeOptions{Write: true}).greet()
		c.askUsual(cmdQueryValidPaths)
		same(t, "valid paths", c.r.StorePaths(10), []nix.StorePath{pathNamed("dep")})
		if store, able := store.(*memStore); able {
			same(t, name+": roots", store.Roots(), nix.SortPaths([]nix.StorePath{pathNamed("dep"), pathNamed("absent")}))
			same(t, name+": substitute", store.substitute, []bool{true})
		}
		c.Close()
		<-c.done
	}
}

// Guards against a limit in another unit than the client means, one that an
// older client did not send, and one that stays from the build before.
func TestBuildLimitsAreThoseOfEachBuild(t *testing.T) {
	for _, v := range versions() {
		store := storeWithPaths()
		c := connect(t, store, ServeOptions{version: Latest, Write: true})
		c.version = v
		c.greet()
		for _, opts := range []BuildOptions{{MaxSilentTime: 5, BuildTimeout: 1<<32 - 1, MaxLogSize: 1<<64 - 1}, {}} {
			c.ask(cmdBuildDerivation, func(c *conn) {
				c.w.StorePath(pathNamed("x.drv"))
				c.w.Derivation(someDerivation())
				c.writeBuildOptions(opts)
			})
			c.readBuildResult()
			c.ask(cmdBuildPaths, func(c *conn) { c.w.Uint64(0); c.writeBuildOptions(opts) })
			c.r.Expect("success", 0)
		}
		want := nix.BuildLimits{MaxSilent: 5 * time.Second, Timeout: (1<<32 - 1) * time.Second, MaxLogSize: 1<<64 - 1}
		if v < sinceLogLimit {
			want.MaxLogSize = 0
		}
		same(t, v.String()+": limits", store.limits, []nix.BuildLimits{want, want, {}, {}})
		check(t, v.String(), c.r.Err())
	}
}

// Guards against builds that are made once though a client wants to know whether
// they come out the same again, and against a session lost over it.
func TestRepeatedBuildsAreAFailure(t *testing.T) {
	store := storeWithPaths()
	c := connect(t, store, ServeOptions{Write: true}).greet()
	c.ask(cmdBuildDerivation, func(c *conn) {
		c.w.StorePath(pathNamed("x.drv"))
		c.w.Derivation(someDerivation())
		c.writeBuildOptions(BuildOptions{Repeats: 1})
	})
	r := c.readBuildResult()
	if r.Status != nix.StatusMiscFailure || !strings.HasPrefix(r.ErrorMsg, "client requested 1 repeating builds") {
		t.Errorf("result %+v", r)
	}
	c.ask(cmdBuildPaths, func(c *conn) { c.w.Uint64(0); c.writeBuildOptions(BuildOptions{Repeats: 7}) })
	same(t, "status", c.r.BuildEnd().Status, nix.StatusMiscFailure)
	c.expectUsable(t)
	if store.drv != nil || store.targets != nil {
		t.Error("something was built")
	}
}

// Guards against clients that take the status 1 of any error for success, and
// die of a status that they do not know.
func TestBuildPathsAnswersZeroOrAFailure(t *testing.T) {
	store := storeWithPaths()
	c := connect(t, store, ServeOptions{Write: true}).greet()
	for status := nix.StatusBuilt; status <= nix.StatusHashMismatch; status++ {
		for _, text := range []string{"", "too bad"} {
			store.results = []nix.KeyedBuildResult{
				{Result: &nix.BuildResult{Status: nix.StatusSubstituted}},
				{Target: nix.DerivedPath{Path: pathNamed("x.drv"), Built: true}, Result: &nix.BuildResult{Status: status, ErrorMsg: text}},
				{Result: nix.Failure(nix.StatusCachedFailure, "another")},
			}
			if status.Success() {
				store.results = store.results[:2]
			}
			c.askUsual(cmdBuildPaths)
			got := c.r.Uint64()
			if status.Success() {
				same(t, status.String(), got, uint64(0))
				continue
			}
			want := status
			if status == nix.StatusHashMismatch {
				want = nix.StatusOutputRejected
			}
			same(t, status.String(), nix.BuildStatus(got), want)
			message := c.r.UserText()
			if text != "" && message != text || !strings.Contains(message, "too bad") && !strings.Contains(message, status.String()) {
				t.Errorf("%s: text %q", status, message)
			}
		}
	}
	c.expectUsable(t)
}

// Guards against targets read in another sense than old clients mean: a bare
// derivation stands for its outputs.
func TestBuildPathsReadsTargetsOfOldClients(t *testing.T) {
	store := storeWithPaths()
	c := connect(t, store, ServeOptions{Write: true}).greet()
	drv := pathNamed("x.drv")
	c.ask(cmdBuildPaths, func(c *conn) {
		c.w.Strings([]string{drv.String(), drv.String() + "!out,dev", pathNamed("dep").String()})
		c.writeBuildOptions(BuildOptions{})
	})
	c.r.Expect("success", 0)
	same(t, "targets", store.targets, []nix.DerivedPath{
		{Path: drv, Built: true}, {Path: drv, Built: true, Outputs: []string{"dev", "out"}}, {Path: pathNamed("dep")},
	})
}

// Guards against inner errors reaching a client, against sentences meant for it
// being lost, and against a session that ends though a result could tell.
func TestClientReadsOnlyWhatIsMeantForIt(t *testing.T) {
	secret := errors.New("/var/lib/secret: no space")
	for name, c := range map[string]struct {
		err        error
		want       string
		reported   bool
		exactMatch bool
	}{
		"inner":     {secret, "internal error; the proxy's log has more, at ", true, false},
		"user":      {fmt.Errorf("add: %w", nix.Refuse("disk is full")), "disk is full", false, true},
		"user+":     {&nix.UserError{Message: "disk is full", Err: secret}, "disk is full", true, true},
		"daemon":    {fmt.Errorf("build: %w", &nix.RemoteError{Message: "no such user"}), "no such user", false, true},
		"not found": {fmt.Errorf("secret: %w", nix.ErrNotFound), "path is not valid", false, true},
	} {
		store := storeWithPaths()
		store.build = func(context.Context, nix.Logger) (*nix.BuildResult, error) { return nil, c.err }
		store.add = func(context.Context, nix.Logger, nix.PathSource) error { return c.err }
		var reported []error
		opts := ServeOptions{Write: true, OnError: func(_ string, err error) { reported = append(reported, err) }}
		wanted := func(text string) bool { return text == c.want || !c.exactMatch && strings.HasPrefix(text, c.want) }

		client := connect(t, store, opts).greet()
		client.askUsual(cmdBuildDerivation)
		if r := client.readBuildResult(); r.Status != nix.StatusMiscFailure || !wanted(r.ErrorMsg) {
			t.Errorf("%s: result %+v", name, r)
		}
		client.expectUsable(t)
		client.askUsual(cmdAddToStoreNar)
		if err := <-client.done; err == nil || !wanted(err.Error()) || !errors.Is(err, c.err) {
			t.Errorf("%s: serve returns %v", name, err)
		}
		if got := slices.Equal(reported, []error{c.err, c.err}); got != c.reported {
			t.Errorf("%s: reported %v", name, reported)
		}
	}
}

// Guards against a path that is not valid being answered with something that is
// taken for a NAR, and against a sentence that clients do not know.
func TestDumpOfAnInvalidPathEndsTheSession(t *testing.T) {
	c := connect(t, storeWithPaths(), ServeOptions{}).greet()
	c.ask(cmdDumpStorePath, func(c *conn) { c.w.StorePath(pathNamed("absent")) })
	c.expectEnd(t, "path '"+pathNamed("absent").String()+"' is not valid")
}

// brokenReader is a NAR that ends with an error.
type brokenReader struct{ io.Reader }

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = errors.New("disk error")
	}
	return n, err
}

func (brokenReader) Close() error { return nil }

type brokenNars struct{ *memStore }

func (brokenNars) NarFromPath(context.Context, nix.StorePath) (io.ReadCloser, error) {
	return brokenReader{bytes.NewReader(somePaths()[0].NAR[:50])}, nil
}

// Guards against a NAR that broke off being followed by a reply, which the
// client would take for a part of it.
func TestBrokenNarEndsTheSession(t *testing.T) {
	var reported error
	c := connect(t, brokenNars{storeWithPaths()}, ServeOptions{OnError: func(_ string, err error) { reported = err }}).greet()
	c.askUsual(cmdDumpStorePath)
	rest, _ := io.ReadAll(c.r)
	same(t, "what follows", rest, somePaths()[0].NAR[:50])
	if err := <-c.done; err == nil || !strings.HasPrefix(err.Error(), "internal error") {
		t.Errorf("serve: %v", err)
	}
	if reported == nil || !strings.Contains(reported.Error(), "disk error") {
		t.Errorf("reported %v", reported)
	}
}

// Guards against uploads that are not what they announce.
func TestUploadsThatLieEndTheSession(t *testing.T) {
	dep := somePaths()[0]
	for name, u := range map[string]struct {
		size uint64
		want string
	}{
		"nothing": {0, "narInfo is too old and missing the narSize field"},
		"short":   {dep.Info.NarSize - 8, "internal error"}, // the NAR's grammar is the store's business
		"huge":    {1<<20 + 1, "read AddToStoreNar: expected a NAR of at most 1048576 bytes, got 1048577"},
	} {
		store := storeWithPaths()
		c := connect(t, store, ServeOptions{Write: true, Limits: Limits{NarSize: 1 << 20}}).greet()
		info := dep.Info.Clone()
		info.NarSize = u.size
		c.w.Uint64(uint64(cmdAddToStoreNar))
		c.w.ValidPathInfo(info)
		c.w.Write(dep.NAR)
		go c.w.Flush()
		if err := <-c.done; err == nil || !strings.HasPrefix(err.Error(), u.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Guards against the rest of an upload that the store did not want to read, as
// it has the path, being taken for the next command.
func TestUnwantedRestOfAnUploadIsSkipped(t *testing.T) {
	c := connect(t, lazyStore{storeWithPaths()}, ServeOptions{Write: true}).greet()
	for range 2 {
		c.ask(cmdAddToStoreNar, func(c *conn) { uploadRequest(c, somePaths()[1]) })
		c.r.Expect("the reply", 1)
	}
	c.expectUsable(t)
}

// Guards against a build that runs on after its client has gone.
func TestHangUpEndsTheCommand(t *testing.T) {
	for _, cmd := range []Command{cmdBuildDerivation, cmdBuildPaths} {
		store := &waitingStore{memStore: newMemStore(), started: make(chan struct{})}
		c := connect(t, store, ServeOptions{Write: true}).greet()
		c.askUsual(cmd)
		<-store.started
		c.Close()
		if err := <-c.done; !errors.Is(err, ErrHangUp) {
			t.Errorf("%s: serve: %v", cmd, err)
		}
	}
}

// Guards against the fate of a command depending on how much faster its client
// closes than the store answers: one that only stops to speak reads its reply.
func TestClientThatStopsToSpeakReadsItsReply(t *testing.T) {
	store := newMemStore()
	store.build = func(ctx context.Context, _ nix.Logger) (*nix.BuildResult, error) {
		<-ctx.Done()
		return someResult(), nil
	}
	heard, err := serveAndHangUp(store, allOf(t), bytesOf(Latest, hello), bytesOf(Latest, requestOf(cmdBuildDerivation)))
	if !errors.Is(err, ErrHangUp) {
		t.Errorf("serve: %v", err)
	}
	if !bytes.HasSuffix(heard, bytesOf(Latest, func(c *conn) { c.writeBuildResult(someResult()) })) {
		t.Errorf("heard %q", heard)
	}
}

// waitingStore builds until somebody stops it.
type waitingStore struct {
	*memStore
	started chan struct{}
}

func (s *waitingStore) BuildDerivation(ctx context.Context, _ nix.Logger, _ nix.StorePath, _ *nix.BasicDerivation, _ nix.BuildMode) (*nix.BuildResult, error) {
	close(s.started)
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (s *waitingStore) BuildPathsWithResults(ctx context.Context, _ nix.Logger, _ []nix.DerivedPath, _ nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	close(s.started)
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// Guards against an upload that goes on for a client that left in its middle.
func TestHangUpInsideAnUploadIsSeenByTheStore(t *testing.T) {
	store := newMemStore()
	seen := make(chan error, 1)
	store.add = func(ctx context.Context, _ nix.Logger, src nix.PathSource) error {
		_, r, _ := src.Next()
		_, err := io.Copy(io.Discard, r)
		seen <- errors.Join(err, context.Cause(ctx))
		return err
	}
	c := connect(t, store, ServeOptions{Write: true}).greet()
	request := bytesOf(Latest, requestOf(cmdAddToStoreNar))
	c.Write(request[:len(request)-20])
	c.Close()
	if err := <-seen; !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, ErrHangUp) {
		t.Errorf("store sees %v", err)
	}
	if err := <-c.done; !errors.Is(err, ErrHangUp) {
		t.Errorf("serve: %v", err)
	}
}

// Guards against a store that still commits when the upload is complete being
// left alone when the client leaves.
func TestHangUpBehindAnUploadEndsTheCommand(t *testing.T) {
	store := newMemStore()
	read := make(chan struct{})
	store.add = func(ctx context.Context, _ nix.Logger, src nix.PathSource) error {
		for {
			if _, _, err := src.Next(); err != nil {
				close(read)
				<-ctx.Done()
				return err
			}
		}
	}
	c := connect(t, store, ServeOptions{Write: true}).greet()
	c.askUsual(cmdAddToStoreNar)
	<-read
	c.Close()
	if err := <-c.done; !errors.Is(err, ErrHangUp) {
		t.Errorf("serve: %v", err)
	}
}

// Guards against hooks that are not called, or with another command's name.
func TestHooksSeeTheSession(t *testing.T) {
	var ops, done []string
	c := dial(t, storeWithPaths(), ClientOptions{}, ServeOptions{
		OnOp:   func(op string) { ops = append(ops, op) },
		OnDone: func(op string, took time.Duration, err error) { done = append(done, fmt.Sprint(op, took > 0, err)) },
	})
	c.QueryValidPaths(context.Background(), nil, false)
	r, err := c.NarFromPath(context.Background(), pathNamed("dep"))
	check(t, "nar from path", err)
	io.Copy(io.Discard, r)
	check(t, "serve", c.hangUp())
	same(t, "commands", ops, []string{"QueryValidPaths", "QueryPathInfos", "DumpStorePath"})
	same(t, "ended", done, []string{"QueryValidPathstrue <nil>", "QueryPathInfostrue <nil>", "DumpStorePathtrue <nil>"})
}

// Guards against a store's log of an upload that reaches the client after its
// reply, where it would belong to the next command.
func TestLogComesBeforeTheReply(t *testing.T) {
	c := dial(t, newMemStore(), ClientOptions{}, ServeOptions{Write: true})
	for i, o := range []storetest.Object{storetest.NewObject("a", "a"), storetest.NewObject("b", "b")} {
		check(t, "upload", c.AddMultipleToStore(context.Background(), nil, storetest.Upload(o), nix.AddOptions{}))
		same(t, "log", c.stderr.String(), "added a\nadded b\n"[:8*(i+1)])
	}
}
