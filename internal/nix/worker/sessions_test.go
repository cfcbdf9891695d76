package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// Guards against anything that real clients and daemons say being read wrongly,
// dropped, or said in another way. Each recorded session is played through a
// server whose store is a client of the recorded daemon: what the server tells
// the client must be what the daemon told it, and what our client asks must be
// what the recorded client asked, byte for byte. Three things differ by intent:
// our server names its own protocol version, what a daemon logs during a query
// is not for the client, and our client cuts uploads into other frames.
func TestRecordedSessionsPassThroughUnchanged(t *testing.T) {
	recordings, err := filepath.Glob("testdata/sessions/*/*.c2s")
	if err != nil || len(recordings) < 15 {
		t.Fatalf("%d recordings: %v", len(recordings), err)
	}
	for _, file := range recordings {
		name := strings.TrimSuffix(file, ".c2s")
		t.Run(strings.TrimPrefix(name, "testdata/sessions/"), func(t *testing.T) {
			c2s, s2c := readFile(t, name+".c2s"), readFile(t, name+".s2c")
			synctest.Test(t, func(t *testing.T) { replay(t, c2s, s2c) })
		})
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func replay(t *testing.T, c2s, s2c []byte) {
	daemon := &recordedDaemon{says: s2c, gate: make(chan struct{})}
	close(daemon.gate)
	want := bytes.Clone(s2c)
	binary.LittleEndian.PutUint64(want[8:], uint64(Latest))
	queryLog := nix.LoggerFunc(func(m nix.LogMessage) { want = without(t, want, m) })
	version := Version(binary.LittleEndian.Uint64(c2s[8:]))
	c, err := NewClient(context.Background(), daemon, ClientOptions{Version: version, MinVersion: Oldest, Log: queryLog})
	if err != nil {
		t.Fatal(err)
	}
	client := newRecordedClient(c2s)
	store := &relay{Client: c, daemon: daemon}
	err = Serve(context.Background(), client, store, ServeOptions{
		DaemonVersion: c.DaemonVersion(), Trust: c.Trust(), OnOp: func(op string) { store.op = op },
		OnError: func(op string, err error) { t.Errorf("%s: %v", op, err) },
	})
	if err != nil {
		t.Errorf("serve: %v", err)
	}
	if !c.Reusable() || len(daemon.says) > 0 {
		t.Errorf("client left %d bytes of the daemon unread", len(daemon.says))
	}
	compare(t, "server to client", client.heard.Bytes(), want)
	compare(t, "client to server", unframed(t, daemon.heard.Bytes()), unframed(t, c2s))
}

// without returns what a daemon says without a log message, which must be in it
// exactly as this package writes it.
func without(t *testing.T, s2c []byte, m nix.LogMessage) []byte {
	t.Helper()
	var b bytes.Buffer
	c := conn{w: wire.NewWriter(&b)}
	c.writeLog(m)
	c.w.Flush()
	before, after, found := bytes.Cut(s2c, b.Bytes())
	if !found {
		t.Errorf("daemon has not said %+v", m)
	}
	return slices.Concat(before, after)
}

func compare(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	from := max(0, n-64)
	t.Errorf("%s: %d bytes, want %d; from byte %d on:\ngot  %q\nwant %q", what, len(got), len(want), n,
		got[from:min(len(got), n+64)], want[from:min(len(want), n+64)])
}

// recordedClient says what it has to say at once, and hangs up when nothing
// moves any more.
type recordedClient struct {
	says  *bytes.Reader
	heard bytes.Buffer
}

func newRecordedClient(says []byte) *recordedClient {
	return &recordedClient{says: bytes.NewReader(says)}
}

func (c *recordedClient) Read(p []byte) (int, error) {
	if n, _ := c.says.Read(p); n > 0 {
		return n, nil
	}
	time.Sleep(time.Hour) // on the test's clock, which waits for everybody else
	return 0, io.EOF
}

func (c *recordedClient) Write(p []byte) (int, error) { return c.heard.Write(p) }

// recordedDaemon says one byte at a time, so that nobody reads ahead, and during
// an upload nothing before the upload's terminator.
type recordedDaemon struct {
	mu    sync.Mutex
	says  []byte
	heard bytes.Buffer
	gate  chan struct{} // closed while the daemon may speak
}

func (d *recordedDaemon) Read(p []byte) (int, error) {
	d.mu.Lock()
	gate := d.gate
	d.mu.Unlock()
	<-gate
	if len(d.says) == 0 {
		return 0, io.EOF
	}
	p[0] = d.says[0]
	d.says = d.says[1:]
	return 1, nil
}

func (d *recordedDaemon) listen() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = make(chan struct{})
}

func (d *recordedDaemon) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.heard.Write(p)
	select {
	case <-d.gate:
	default:
		if bytes.HasSuffix(p, make([]byte, 8)) { // no NAR ends like this
			close(d.gate)
		}
	}
	return len(p), nil
}

func (d *recordedDaemon) Close() error { return nil }

// relay asks the daemon for what the client asked, also where the server
// translates an operation into another one.
type relay struct {
	*Client
	daemon *recordedDaemon
	op     string
}

func (r *relay) QueryValidPaths(ctx context.Context, paths []nix.StorePath, substitute bool) ([]nix.StorePath, error) {
	if r.op != "IsValidPath" {
		return r.Client.QueryValidPaths(ctx, paths, substitute)
	}
	valid := false
	err := r.do(ctx, opIsValidPath, nix.Discard, func() { r.w.StorePath(paths[0]) }, func() { valid = r.r.Bool() })
	if !valid {
		paths = nil
	}
	return paths, err
}

func (r *relay) BuildPathsWithResults(ctx context.Context, log nix.Logger, targets []nix.DerivedPath, mode nix.BuildMode) ([]nix.KeyedBuildResult, error) {
	if r.op == "BuildPaths" {
		return r.buildPaths(ctx, log, targets, mode)
	}
	return r.Client.BuildPathsWithResults(ctx, log, targets, mode)
}

func (r *relay) AddMultipleToStore(ctx context.Context, log nix.Logger, src nix.PathSource, opts nix.AddOptions) error {
	r.daemon.listen()
	if r.op != "AddToStoreNar" {
		return r.Client.AddMultipleToStore(ctx, log, src, opts)
	}
	return r.addEach(ctx, log, src, opts)
}

func (r *relay) AddToStore(ctx context.Context, log nix.Logger, req nix.AddToStoreRequest, dump io.Reader) (*nix.PathInfo, error) {
	r.daemon.listen()
	return r.Client.AddToStore(ctx, log, req, dump)
}

// unframed returns what a client says with each upload in a single frame.
func unframed(t *testing.T, c2s []byte) []byte {
	t.Helper()
	u := &unframer{conn: conn{r: wire.NewReader(bytes.NewReader(c2s)), limits: Limits{}.WithDefaults()}, in: c2s}
	u.r.Uint64()
	u.version = Version(u.r.Uint64())
	if u.version >= sinceFeatures {
		u.readFeatures()
	}
	u.r.Uint64()
	u.r.Uint64()
	for u.r.More() {
		u.request(t)
	}
	u.keep()
	if u.r.Err() != nil {
		t.Errorf("what the client says: %v", u.r.Err())
	}
	return u.out
}

type unframer struct {
	conn
	in, out []byte
	kept    int64 // how much of in is in out
}

// keep copies what was read as it is.
func (u *unframer) keep() {
	u.out = append(u.out, u.in[u.kept:u.r.Offset()]...)
	u.kept = u.r.Offset()
}

func (u *unframer) request(t *testing.T) {
	switch op := Op(u.r.Uint64()); op {
	case opIsValidPath, opAddTempRoot, opQueryPathInfo, opNarFromPath, opQueryDerivationOutputMap, opEnsurePath:
		u.r.StorePath()
	case opQueryValidPaths:
		u.r.StorePaths(u.limits.Paths)
		u.r.Bool()
	case opBuildDerivation:
		u.r.StorePath()
		u.readDerivation()
		u.readBuildMode()
	case opBuildPaths, opBuildPathsWithResults:
		u.readTargets()
	case opQueryMissing:
		u.readDerivedPaths()
	case opAddMultipleToStore:
		u.r.Bool()
		u.r.Bool()
		u.frames()
	case opAddToStore:
		u.r.String(wire.MaxString)
		u.r.String(wire.MaxString)
		u.r.StorePaths(wire.MaxReferences)
		u.r.Bool()
		u.frames()
	default:
		t.Fatalf("recording has %s", op)
	}
}

func (u *unframer) frames() {
	u.keep()
	payload, _ := io.ReadAll(wire.NewFrameReader(u.r))
	u.out = binary.LittleEndian.AppendUint64(u.out, uint64(len(payload)))
	u.out = append(u.out, payload...)
	u.kept = u.r.Offset()
}
