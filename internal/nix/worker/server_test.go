package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

var latest = dialect{version: Latest}

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
	c.conn = conn{r: wire.NewReader(near), w: wire.NewWriter(near), dialect: latest, limits: Limits{}.WithDefaults()}
	go func() {
		defer far.Close()
		c.done <- Serve(context.Background(), far, store, opts)
	}()
	t.Cleanup(func() { near.Close() })
	return c
}

// greet shakes hands without features.
func (c *rawClient) greet() {
	c.w.Uint64(magicClient)
	c.w.Uint64(uint64(Latest))
	c.w.Flush()
	c.r.Uint64()
	c.r.Uint64()
	c.w.Uint64(0) // no features
	c.w.Flush()
	c.readFeatures()
	c.w.Uint64(0)
	c.w.Uint64(0)
	c.w.Flush()
	c.r.String(wire.MaxString)
	c.r.Uint64()
	c.r.Expect("the end of the handshake", stderrLast)
}

// ask sends a request of the table.
func (c *rawClient) ask(op Op) {
	requestOf(op)(&c.conn)
	c.w.Flush()
}

// expectUsable asks something simple of a store with paths.
func (c *rawClient) expectUsable(t *testing.T) {
	t.Helper()
	c.ask(opIsValidPath)
	c.r.Expect("the reply", stderrLast)
	if !c.r.Bool() || c.r.Err() != nil {
		t.Errorf("session is not usable: %v", c.r.Err())
	}
}

func (c *rawClient) expectError(t *testing.T, want string) {
	t.Helper()
	c.r.Expect("an error", stderrError)
	if e := c.readError(); e.Message != want || c.r.Err() != nil {
		t.Errorf("got the error %q (%v), want %q", e.Message, c.r.Err(), want)
	}
}

// Guards against a dead-lock with clients up to 2.22 and Lix, which send their
// version only after the server's.
func TestServerAnswersMagicBeforeTheVersion(t *testing.T) {
	c := connect(t, storeWithPaths(), ServeOptions{})
	c.w.Uint64(magicClient)
	c.w.Flush()
	c.r.Expect("the magic", magicServer)
	if v := Version(c.r.Uint64()); v != Latest || c.r.Err() != nil {
		t.Errorf("got %s, %v", v, c.r.Err())
	}
}

// Guards against 2.23 clients, which send their version twice, getting out of step.
func TestServerTakesAVersionSentTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := dialect{version: 1<<8 | 37}
		greeting := bytesOf(d, func(c *conn) {
			for _, n := range []uint64{magicClient, uint64(d.version), uint64(d.version), 0, 0} {
				c.w.Uint64(n)
			}
		})
		heard, err := serveBytes(storeWithPaths(), ServeOptions{}, greeting, bytesOf(d, requestOf(opQueryValidPaths)))
		if err != nil || !bytes.HasSuffix(heard, replyTail(d)) {
			t.Errorf("%v, heard %q", err, heard)
		}
	})
}

// Guards against talking on with a peer that is no Nix client, or one whose
// version nobody here speaks.
func TestServerRefusesOtherPeersAndVersions(t *testing.T) {
	versions := bytesOf(latest, func(c *conn) { // all that is said before the client is known
		c.w.Uint64(magicServer)
		c.w.Uint64(uint64(Latest))
		c.w.Strings(allFeatures)
	})
	for name, c := range map[string]struct {
		says []byte
		want string
	}{
		"magic":     {bytesOf(latest, func(c *conn) { c.w.Uint64(42) }), "protocol mismatch: expected the client's magic number 0x6e697863, got 0x2a (at byte 8)"},
		"old":       {bytesOf(dialect{version: 1<<8 | 20}, hello), "this Nix client speaks version 1.20 of the worker protocol; 1.21 or a newer 1.x is needed (Nix 2.3)"},
		"major":     {bytesOf(dialect{version: 2<<8 | 1}, hello), "this Nix client speaks version 2.1 of the worker protocol; 1.21 or a newer 1.x is needed (Nix 2.3)"},
		"truncated": {bytesOf(latest, hello)[:39], "read the client's handshake: unexpected EOF"},
	} {
		heard, err := serveAndHangUp(storeWithPaths(), c.says)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
		var version *VersionError
		if errors.As(err, &version) != strings.Contains(c.want, "speaks version") {
			t.Errorf("%s: type of %v", name, err)
		}
		if !bytes.HasPrefix(versions, heard) {
			t.Errorf("%s: server said %q", name, heard)
		}
	}
}

// Guards against a version or a feature in force that one side did not offer.
func TestHandshakeAgreesOnWhatBothSpeak(t *testing.T) {
	c := dial(t, newMemStore(), ClientOptions{Features: []string{"unknown", FeatureDeleteReferrers}}, ServeOptions{Features: allFeatures})
	same(t, "features", c.features, []string{FeatureDeleteReferrers})
	c = dial(t, newMemStore(), ClientOptions{Features: allFeatures}, ServeOptions{})
	same(t, "features", len(c.features), 0)
	c = dial(t, newMemStore(), ClientOptions{Version: Latest + 7}, ServeOptions{})
	same(t, "version", c.Version(), Latest)
	same(t, "daemon version", c.DaemonVersion(), "unknown")
}

// Guards against a client that is refused with nothing but a closed connection.
func TestRefusalInTheHandshakeIsASentence(t *testing.T) {
	c := connect(t, newMemStore(), ServeOptions{Refuse: "no builder is up"})
	_, err := NewClient(context.Background(), c.Conn, ClientOptions{})
	var remote *nix.RemoteError
	if !errors.As(err, &remote) || remote.Message != "no builder is up" {
		t.Errorf("got %v", err)
	}
	if err := <-c.done; err == nil {
		t.Error("serve went on")
	}
}

// Guards against going on after an operation whose length nobody knows.
func TestUnknownOperationEndsTheSession(t *testing.T) {
	c := connect(t, newMemStore(), ServeOptions{})
	c.greet()
	c.w.Uint64(1000)
	c.w.Flush()
	c.expectError(t, "invalid operation 1000")
	if err := <-c.done; err == nil || err.Error() != "invalid operation 1000" {
		t.Errorf("serve: %v", err)
	}
	if c.r.More() {
		t.Error("server says more")
	}
}

// Guards against a malformed request being taken for a failed operation, after
// which the rest of it would be read as the next one.
func TestMalformedRequestEndsTheSessionWithASentence(t *testing.T) {
	c := connect(t, newMemStore(), ServeOptions{})
	c.greet()
	c.w.Uint64(uint64(opQueryPathInfo))
	c.w.String("/etc/passwd")
	c.w.Flush()
	c.expectError(t, `read QueryPathInfo: path "/etc/passwd" is not in the Nix store (at byte 72)`)
	if err := <-c.done; !wire.IsFormat(err) {
		t.Errorf("serve: %v", err)
	}
}

// Guards against inner errors reaching a client, and against sentences meant for
// it being lost.
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
		var reported error
		client := dial(t, store, ClientOptions{}, ServeOptions{OnError: func(_ string, err error) { reported = err }})
		_, err := client.BuildDerivation(context.Background(), nix.Discard, pathNamed("x.drv"), someDerivation(), 0)
		var remote *nix.RemoteError
		if !errors.As(err, &remote) || !strings.HasPrefix(remote.Message, c.want) || c.exactMatch && remote.Message != c.want {
			t.Errorf("%s: client reads %v", name, err)
		}
		if (reported == c.err) != c.reported {
			t.Errorf("%s: reported %v", name, reported)
		}
		if !client.Reusable() {
			t.Errorf("%s: session is not usable", name)
		}
	}
}

// Guards against clients before 1.26 reading an error in a form that they do not
// know, and against a failed BuildPaths without its exit status.
func TestErrorsBeforeStructuredErrors(t *testing.T) {
	store := newMemStore()
	store.results = []nix.KeyedBuildResult{{Result: nix.Failure(nix.StatusTimedOut, "too slow")}}
	c := dial(t, store, ClientOptions{Version: sinceContentMethod, MinVersion: Oldest}, ServeOptions{})
	_, err := c.BuildPathsWithResults(context.Background(), nix.Discard, nil, 0)
	var remote *nix.RemoteError
	if !errors.As(err, &remote) || remote.Message != "too slow" || remote.Status != 101 {
		t.Errorf("got %#v", err)
	}
}

// Guards against a status that ends newer clients, and a text on success.
func TestBuildResultIsSentAsClientsTakeIt(t *testing.T) {
	store := newMemStore()
	c := dial(t, store, ClientOptions{}, ServeOptions{})
	for _, want := range []struct{ sent, got nix.BuildResult }{
		{nix.BuildResult{Status: nix.StatusHashMismatch, ErrorMsg: "differs"}, nix.BuildResult{Status: nix.StatusOutputRejected, ErrorMsg: "differs"}},
		{nix.BuildResult{Status: nix.StatusBuilt, ErrorMsg: "noise"}, nix.BuildResult{Status: nix.StatusBuilt}},
	} {
		store.build = func(context.Context, nix.Logger) (*nix.BuildResult, error) { return &want.sent, nil }
		got, err := c.BuildDerivation(context.Background(), nix.Discard, pathNamed("x.drv"), someDerivation(), 0)
		check(t, "build", err)
		same(t, "result", *got, want.got)
	}
}

// Guards against a build that runs on after its client has gone.
func TestHangUpEndsTheOperation(t *testing.T) {
	store := newMemStore()
	started := make(chan struct{})
	store.build = func(ctx context.Context, _ nix.Logger) (*nix.BuildResult, error) {
		close(started)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	c := connect(t, store, ServeOptions{})
	c.greet()
	c.ask(opBuildDerivation)
	<-started
	c.Close()
	if err := <-c.done; !errors.Is(err, ErrHangUp) && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("serve: %v", err)
	}
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
	c := connect(t, store, ServeOptions{})
	c.greet()
	request := bytesOf(latest, requestOf(opAddMultipleToStore))
	c.Write(request[:400])
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
func TestHangUpBehindAnUploadEndsTheOperation(t *testing.T) {
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
	c := connect(t, store, ServeOptions{})
	c.greet()
	c.ask(opAddMultipleToStore)
	<-read
	c.Close()
	<-c.done
}

// Guards against an upload whose error waits until everything was sent, against
// a reply before the terminator, and against the session being out of step
// behind it.
func TestErrorInAnUploadIsToldAtOnceAndFramesAreReadToTheEnd(t *testing.T) {
	store := storeWithPaths()
	store.add = func(context.Context, nix.Logger, nix.PathSource) error { return nix.Refuse("quota exceeded") }
	c := connect(t, store, ServeOptions{})
	c.greet()
	payload := uploadOf(&c.conn, somePaths()...)
	c.w.Uint64(uint64(opAddMultipleToStore))
	c.w.Uint64(0)
	c.w.Uint64(0)
	c.w.Uint64(8)
	c.w.Write(payload[:8])
	c.w.Flush()
	c.expectError(t, "quota exceeded")
	c.w.Uint64(uint64(len(payload) - 8))
	c.w.Write(payload[8:])
	c.w.Uint64(0)
	c.w.Flush()
	c.expectUsable(t)
}

// Guards against a dead-lock with a client that reads nothing before it has sent
// its whole upload, whatever the store logs meanwhile.
func TestLogNeverBlocksAnUpload(t *testing.T) {
	for name, result := range map[string]error{"success": nil, "error": nix.Refuse("no")} {
		store := storeWithPaths()
		store.add = func(_ context.Context, log nix.Logger, src nix.PathSource) error {
			_, r, _ := src.Next()
			for range 10_000 {
				nix.Line(log, "a line that somebody would have to read")
			}
			if result == nil {
				io.Copy(io.Discard, r)
			}
			return result
		}
		c := connect(t, store, ServeOptions{})
		c.greet()
		c.w.Uint64(uint64(opAddMultipleToStore))
		c.w.Uint64(0)
		c.w.Uint64(0)
		inFrames(&c.conn, uploadOf(&c.conn, somePaths()[1]))
		c.w.Flush() // all is sent, nothing was read
		var last nix.LogMessage
		kind := c.r.Uint64()
		for ; kind == stderrNext; kind = c.r.Uint64() {
			last = c.readLog(kind)
		}
		if !strings.HasSuffix(last.Text, " log messages were dropped during the upload\n") {
			t.Errorf("%s: last message is %q", name, last.Text)
		}
		if kind == stderrError {
			c.readError()
		}
		if (kind == stderrLast) != (result == nil) {
			t.Errorf("%s: the reply is %#x", name, kind)
		}
		c.expectUsable(t)
	}
}

// countingWriter counts packets.
type countingWriter struct {
	*recordedClient
	writes int
}

func (c *countingWriter) Write(p []byte) (int, error) {
	c.writes++
	return c.recordedClient.Write(p)
}

// Guards against a packet per log line, and against lines lost or out of order.
func TestManyLogLinesShareFewPackets(t *testing.T) {
	const lines = 100_000
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		store.build = func(_ context.Context, log nix.Logger) (*nix.BuildResult, error) {
			for i := range lines {
				log.Log(nix.LogMessage{Kind: nix.LogResult, ID: 1, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.IntField(uint64(i))}})
			}
			return someResult(), nil
		}
		client := &countingWriter{recordedClient: newRecordedClient(append(bytesOf(latest, hello), bytesOf(latest, requestOf(opBuildDerivation))...))}
		if err := Serve(context.Background(), client, store, ServeOptions{}); err != nil {
			t.Fatal(err)
		}
		if client.writes > lines/50 {
			t.Errorf("%d packets for %d lines", client.writes, lines)
		}
		c := conn{r: wire.NewReader(&client.heard), dialect: latest, limits: Limits{}.WithDefaults()}
		for c.r.Uint64() != stderrLast {
		}
		for i := range lines {
			if m := c.readLog(c.r.Uint64()); len(m.Fields) != 1 || m.Fields[0].Int != uint64(i) {
				t.Fatalf("line %d is %+v, %v", i, m, c.r.Err())
			}
		}
		c.r.Expect("the reply", stderrLast)
		same(t, "result", c.readBuildResult(), asSentAt(c, someResult()))
	})
}

// Guards against a line that waits for the next one while a build is silent.
func TestSingleLogLineLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		release := make(chan struct{})
		store.build = func(_ context.Context, log nix.Logger) (*nix.BuildResult, error) {
			nix.Line(log, "waiting for a builder")
			<-release
			return someResult(), nil
		}
		c := connect(t, store, ServeOptions{})
		c.greet()
		c.ask(opBuildDerivation)
		start := time.Now()
		m := c.readLog(c.r.Uint64())
		if m.Text != "waiting for a builder\n" || time.Since(start) > logDelay {
			t.Errorf("got %+v after %s", m, time.Since(start))
		}
		close(release)
		c.r.Expect("the reply", stderrLast)
		c.readBuildResult()
		c.Close()
		<-c.done
	})
}

// Guards against a message between a reply and the next request, which would end
// every client's session.
func TestLogAfterTheOperationIsDropped(t *testing.T) {
	store := storeWithPaths()
	var kept nix.Logger
	store.build = func(_ context.Context, log nix.Logger) (*nix.BuildResult, error) {
		kept = log
		return someResult(), nil
	}
	c := connect(t, store, ServeOptions{})
	c.greet()
	c.ask(opBuildDerivation)
	c.r.Expect("the reply", stderrLast)
	c.readBuildResult()
	nix.Line(kept, "too late")
	c.expectUsable(t)
}

// Guards against log messages of several goroutines cut into each other.
func TestLogTakesManyGoroutines(t *testing.T) {
	store := newMemStore()
	const each = 2000
	store.build = func(_ context.Context, log nix.Logger) (*nix.BuildResult, error) {
		done := make(chan struct{})
		for range 4 {
			go func() {
				for range each {
					nix.Line(log, strings.Repeat("x", 100))
				}
				done <- struct{}{}
			}()
		}
		for range 4 {
			<-done
		}
		return someResult(), nil
	}
	c, log := dial(t, store, ClientOptions{}, ServeOptions{}), &logRecorder{}
	_, err := c.BuildDerivation(context.Background(), log, pathNamed("x.drv"), someDerivation(), 0)
	check(t, "build", err)
	same(t, "number of messages", len(log.messages), 4*each)
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
	return brokenReader{bytes.NewReader(somePaths()[0].nar[:50])}, nil
}

// Guards against a NAR that broke off being followed by a reply, which the
// client would take for a part of it.
func TestBrokenNarEndsTheSession(t *testing.T) {
	c := connect(t, brokenNars{storeWithPaths()}, ServeOptions{})
	c.greet()
	c.ask(opNarFromPath)
	c.r.Expect("the reply", stderrLast)
	rest, _ := io.ReadAll(c.r)
	same(t, "what follows", rest, somePaths()[0].nar[:50])
	if err := <-c.done; err == nil || !strings.Contains(err.Error(), "disk error") {
		t.Errorf("serve: %v", err)
	}
}

// Guards against clients up to 2.24 that wait for ever for the NAR of a path that
// is not there: they do not look at the error that comes instead of it, and only
// the end of the session tells them. Newer ones go on.
func TestErrorInsteadOfANarEndsSessionsOfOlderClients(t *testing.T) {
	for name, opts := range dialects() {
		t.Run(name, func(t *testing.T) {
			c := dial(t, storeWithPaths(), opts, ServeOptions{Features: allFeatures})
			_, err := c.NarFromPath(t.Context(), pathNamed("absent"))
			same(t, "NAR of an absent path is not found", errors.Is(err, nix.ErrNotFound), true)
			_, err = c.QueryValidPaths(t.Context(), nil, false)
			same(t, "the session goes on", err == nil, c.Version() >= sinceNarErrors)
			err = c.hangUp()
			same(t, "how it ended is told", err != nil && strings.Contains(err.Error(), "is not valid"), c.Version() < sinceNarErrors)
		})
	}
}

// Guards against uploads that are not what they announce: each is an error with
// a sentence, nothing is stored under the name, and the session goes on.
func TestUploadsThatLieAreRefused(t *testing.T) {
	dep := somePaths()[0]
	long, short := dep.info.Clone(), dep.info.Clone()
	long.NarSize += 8
	short.NarSize -= 8
	store := storeWithPaths()
	c := connect(t, store, ServeOptions{Limits: Limits{NarSize: 1 << 20, Paths: 10}})
	c.greet()
	huge := dep.info.Clone()
	huge.NarSize = 1<<20 + 1
	entry := func(info *nix.PathInfo, nar []byte) []byte { return uploadOf(&c.conn, memPath{info, nar}) }
	for name, u := range map[string]struct {
		payload []byte
		want    string
	}{
		"long":    {entry(long, dep.nar), "upload of " + dep.info.Path.String() + " ends after 120 of the announced 128 bytes"},
		"short":   {entry(short, dep.nar), "internal error"}, // the NAR's grammar is the store's business
		"huge":    {entry(huge, dep.nar), "expected a NAR of at most 1048576 bytes, got 1048577"},
		"count":   {append(bytesOf(latest, func(c *conn) { c.w.Uint64(11) }), dep.nar...), "expected a collection with a count of at most 10, got 11"},
		"missing": {append(bytesOf(latest, func(c *conn) { c.w.Uint64(2) }), entry(dep.info, dep.nar)[8:]...), "upload ends inside a path info"},
		"extra":   {append(entry(dep.info, dep.nar), 1), "expected the end of the upload, got more bytes than were announced"},
		"cut":     {entry(dep.info, dep.nar)[:300], "upload ends inside a path info"},
		"empty":   {nil, "upload ends before the count of its paths"},
	} {
		c.w.Uint64(uint64(opAddMultipleToStore))
		c.w.Uint64(0)
		c.w.Uint64(0)
		inFrames(&c.conn, u.payload)
		c.w.Flush()
		kind := c.r.Uint64()
		for ; kind == stderrNext; kind = c.r.Uint64() {
			c.readLog(kind)
		}
		if kind != stderrError {
			t.Fatalf("%s: reply is %#x", name, kind)
		}
		if e := c.readError(); !strings.Contains(e.Message, u.want) {
			t.Errorf("%s: got %q, want %q", name, e.Message, u.want)
		}
		c.expectUsable(t)
	}
}

// Guards against the server asking a client of 1.21 or 1.22 for more than it
// has, on which it drops the connection, or for what the store does not want.
func TestPulledUploadIsAskedForExactly(t *testing.T) {
	big := somePaths()[1]
	for _, wanted := range []uint64{0, 100, pullSize + 1, big.info.NarSize} {
		store := storeWithPaths()
		store.add = func(_ context.Context, _ nix.Logger, src nix.PathSource) error {
			_, r, err := src.Next()
			if wanted == 0 {
				return err
			}
			_, err = io.CopyN(io.Discard, r, int64(wanted))
			if wanted == big.info.NarSize {
				_, _, err = src.Next()
			}
			if err == io.EOF {
				err = nil
			}
			return err
		}
		c := dial(t, store, ClientOptions{Version: Oldest, MinVersion: Oldest}, ServeOptions{})
		src := bytes.NewReader(big.nar)
		err := c.addNar(context.Background(), nix.Discard, big.info, src, nix.AddOptions{})
		check(t, "upload", err)
		asked := (wanted + pullSize - 1) / pullSize * pullSize
		same(t, "bytes left", uint64(src.Len()), big.info.NarSize-min(asked, big.info.NarSize))
		if !c.Reusable() {
			t.Error("session is not usable")
		}
	}
}

// Guards against a name that no store path can have reaching the store.
func TestAddToStoreChecksNameAndMethod(t *testing.T) {
	c := dial(t, storeWithPaths(), ClientOptions{}, ServeOptions{})
	for _, name := range []string{"../etc", "", strings.Repeat("x", 212)} {
		_, err := c.AddToStore(context.Background(), nix.Discard, nix.AddToStoreRequest{Name: name, Method: textMethod}, strings.NewReader("hello"))
		var remote *nix.RemoteError
		if !errors.As(err, &remote) || !strings.Contains(remote.Message, "cannot be the name of a store path") {
			t.Errorf("%q: %v", name, err)
		}
	}
	raw := connect(t, storeWithPaths(), ServeOptions{})
	raw.greet()
	raw.w.Uint64(uint64(opAddToStore))
	raw.w.String("x")
	raw.w.String("fixed:blake3")
	raw.w.Uint64(0)
	raw.w.Uint64(0)
	inFrames(&raw.conn, []byte("content"))
	raw.expectError(t, `content address method "fixed:blake3": unknown hash algorithm "blake3"`)
	raw.expectUsable(t)
}

// Guards against hooks that are not called, or with another operation's name.
func TestHooksSeeTheSession(t *testing.T) {
	var ops, done []string
	var version Version
	c := dial(t, storeWithPaths(), ClientOptions{}, ServeOptions{
		OnOp: func(op string) { ops = append(ops, op) }, OnHandshake: func(v Version) { version = v },
		OnDone: func(op string, took time.Duration, err error) {
			done = append(done, fmt.Sprintf("%s took: %t failed: %t", op, took > 0, err != nil))
		},
	})
	c.QueryPathInfo(context.Background(), pathNamed("dep"))
	c.QueryAllValidPaths(context.Background())
	c.AddSignatures(context.Background(), pathNamed("nowhere"), nil)
	check(t, "serve", c.hangUp())
	same(t, "operations", ops, []string{"QueryPathInfo", "QueryAllValidPaths", "AddSignatures"})
	same(t, "ended", done, []string{"QueryPathInfo took: true failed: false", "QueryAllValidPaths took: true failed: false", "AddSignatures took: true failed: true"})
	same(t, "version", version, Latest)
}
