package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
	"nixbastion/internal/nix/wire"
)

// calls are commands of a client, as they go well with a store with paths.
var calls = map[string]func(*Client) error{
	"QueryValidPaths": func(c *Client) error {
		_, err := c.QueryValidPaths(context.Background(), []nix.StorePath{pathNamed("dep"), pathNamed("absent")}, true)
		return err
	},
	"AddTempRoots": func(c *Client) error {
		return c.AddTempRoots(context.Background(), []nix.StorePath{pathNamed("dep"), pathNamed("big")})
	},
	"QueryPathInfo": func(c *Client) error {
		_, err := c.QueryPathInfo(context.Background(), pathNamed("big"))
		return err
	},
	"QueryPathInfos": func(c *Client) error {
		_, err := c.QueryPathInfos(context.Background(), []nix.StorePath{pathNamed("dep"), pathNamed("absent"), pathNamed("big")})
		return err
	},
	"NarFromPath": func(c *Client) error {
		r, err := c.NarFromPath(context.Background(), pathNamed("dep"))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return errors.Join(err, r.Close())
	},
	"AddMultipleToStore": func(c *Client) error {
		return c.AddMultipleToStore(context.Background(), nix.Discard, storetest.Upload(somePaths()...), nix.AddOptions{})
	},
	"BuildDerivation": func(c *Client) error {
		_, err := c.BuildDerivation(context.Background(), nix.Discard, pathNamed("x.drv"), someDerivation(), nix.BuildNormal)
		return err
	},
}

// answerVersions are those in which answers differ.
var answerVersions = []Version{Oldest, sinceNarHash, sinceBuiltOutputs, sinceOutputNames}

// listener keeps what is read through it.
type listener struct {
	net.Conn
	heard bytes.Buffer
}

func (l *listener) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.heard.Write(p[:n])
	return n, err
}

// answersTo returns all that a server says in a session with one call.
func answersTo(t testing.TB, v Version, name string) []byte {
	t.Helper()
	clientOpts, serverOpts := at(v)
	serverOpts.SpoolDir = t.TempDir()
	near, far := net.Pipe()
	ears := &listener{Conn: near}
	done := make(chan error, 1)
	go func() {
		defer far.Close()
		done <- Serve(context.Background(), far, storeWithPaths(), serverOpts)
	}()
	c, err := NewClient(context.Background(), ears, clientOpts)
	if err != nil {
		t.Fatal(err)
	}
	if err := calls[name](c); err != nil {
		t.Fatalf("%s, %s: %v", v, name, err)
	}
	c.Close()
	<-done
	return ears.heard.Bytes()
}

// hostileServer says what it has to say at once and then ends the stream; it
// takes everything.
type hostileServer struct{ io.Reader }

func (hostileServer) Write(p []byte) (int, error) { return len(p), nil }

func (hostileServer) Close() error { return nil }

// callAgainst has a session of one call with a server that says the given bytes.
func callAgainst(v Version, name string, says io.Reader) error {
	clientOpts, _ := at(v)
	c, err := NewClient(context.Background(), hostileServer{says}, clientOpts)
	if err != nil {
		return err
	}
	defer c.Close()
	return calls[name](c)
}

// Guards against a server that makes the proxy panic, wait for bytes that never
// come, or allocate what it only claims: each integer of each answer is replaced
// in turn. What no field may be is told as the server's fault, so that nobody
// goes on with the session.
func TestLyingServerCostsNothing(t *testing.T) {
	lies := append([]uint64{wire.MaxText, wire.DefaultNarSize, wire.DefaultNarSize + 1}, lies...)
	for _, v := range answerVersions {
		for name := range calls {
			says := answersTo(t, v, name)
			for at := 0; at+8 <= len(says); at += 8 {
				if isText(says, at) {
					continue
				}
				for _, lie := range lies {
					lying := bytes.Clone(says)
					putUint64(lying[at:], lie)
					var err error
					if grown := allocated(func() { err = callAgainst(v, name, bytes.NewReader(lying)) }); grown > 2<<20 {
						t.Errorf("%s, %s with %#x at byte %d of %d: allocated %d bytes", v, name, lie, at, len(says), grown)
					}
					var broken *ConnError
					if lie >= 1<<63 && errors.As(err, &broken) && !broken.Corrupt {
						t.Errorf("%s, %s with %#x at byte %d of %d: %v", v, name, lie, at, len(says), err)
					}
				}
			}
		}
	}
}

// Guards against an answer that ends early being taken for a whole one, whether
// it comes at once or byte by byte.
func TestAnswerCutAtEveryByteIsAnError(t *testing.T) {
	for _, v := range answerVersions {
		for name := range calls {
			says := answersTo(t, v, name)
			for what, whole := range map[string]io.Reader{"at once": bytes.NewReader(says), "byte by byte": iotest.OneByteReader(bytes.NewReader(says))} {
				if err := callAgainst(v, name, whole); err != nil {
					t.Errorf("%s, %s: whole answer %s: %v", v, name, what, err)
				}
			}
			for n := range says {
				if callAgainst(v, name, bytes.NewReader(says[:n])) == nil {
					t.Fatalf("%s, %s: cut at %d of %d is taken for whole", v, name, n, len(says))
				}
			}
		}
	}
}

// against shakes hands with a server that says the given behind its half.
func against(t *testing.T, answer func(*conn)) *Client {
	t.Helper()
	says := bytesOf(Announced, func(c *conn) {
		c.w.Uint64(magicServer)
		c.w.Uint64(uint64(Announced))
		answer(c)
	})
	c, err := NewClient(context.Background(), hostileServer{bytes.NewReader(says)}, ClientOptions{})
	check(t, "handshake", err)
	return c
}

// Guards against answers about paths that nobody asked for, which would become
// valid here by a builder's word, against a second answer about one, and against
// a session that is used on.
func TestAnswerThatWasNotAskedForIsCorrupt(t *testing.T) {
	other := storetest.NewObject("other", "other").Info
	dep := somePaths()[0].Info
	keyed := func(c *conn, info *nix.PathInfo) { c.w.StorePath(info.Path); c.writePathInfo(info) }
	for name, tc := range map[string]struct {
		call   string
		answer func(*conn)
	}{
		"valid":         {"QueryValidPaths", func(c *conn) { c.w.StorePaths([]nix.StorePath{other.Path}) }},
		"too many":      {"QueryValidPaths", func(c *conn) { c.w.StorePaths([]nix.StorePath{other.Path, dep.Path, pathNamed("absent")}) }},
		"rooted":        {"AddTempRoots", func(c *conn) { c.w.StorePaths([]nix.StorePath{other.Path}) }},
		"info":          {"QueryPathInfo", func(c *conn) { keyed(c, other) }},
		"one more info": {"QueryPathInfos", func(c *conn) { keyed(c, dep); keyed(c, other) }},
		"info twice":    {"QueryPathInfos", func(c *conn) { keyed(c, dep); keyed(c, dep) }},
		"bare hash":     {"QueryPathInfo", func(c *conn) { c.w.StorePath(pathNamed("big")); hashed(c, dep.NarHash.Base16()) }},
		"short hash":    {"QueryPathInfo", func(c *conn) { c.w.StorePath(pathNamed("big")); hashed(c, "sha1:"+strings.Repeat("0", 40)) }},
		"NAR":           {"NarFromPath", func(c *conn) { keyed(c, other) }},
		"upload":        {"AddMultipleToStore", func(c *conn) { c.w.Uint64(0) }},
		"second upload": {"AddMultipleToStore", func(c *conn) { c.w.Uint64(1); c.w.Uint64(2) }},
	} {
		c := against(t, func(c *conn) { tc.answer(c); c.w.StorePath(nix.StorePath{}) })
		err := calls[tc.call](c)
		var broken *ConnError
		if !errors.As(err, &broken) || !broken.Corrupt {
			t.Errorf("%s: %v", name, err)
		}
		if c.Reusable() {
			t.Errorf("%s: session is reusable", name)
		}
	}
}

// hashed writes a path info with a hash in it.
func hashed(c *conn, hash string) {
	c.w.Write(make([]byte, 4*8)) // no deriver, no references, no sizes
	c.w.String(hash)
	c.w.Write(make([]byte, 2*8)) // no content address, no signatures
}

// Guards against a NAR that is not the one that was announced filling the disk,
// or being handed out as if it were.
func TestNarIsBoundedByItsInfo(t *testing.T) {
	dep := somePaths()[0]
	big := somePaths()[1]
	for name, nar := range map[string][]byte{"larger": big.NAR, "no": []byte(strings.Repeat("x", 200)), "cut": dep.NAR[:100]} {
		c := against(t, func(c *conn) {
			c.w.StorePath(dep.Info.Path)
			c.writePathInfo(dep.Info)
			c.w.StorePath(nix.StorePath{})
			c.w.Write(nar)
		})
		r, err := c.NarFromPath(context.Background(), dep.Info.Path)
		check(t, "nar from path", err)
		n, err := io.Copy(io.Discard, r)
		var broken *ConnError
		if !errors.As(err, &broken) || n > 64<<10 {
			t.Errorf("%s NAR: %v after %d bytes", name, err, n)
		}
		check(t, "close", r.Close())
		if c.Reusable() {
			t.Errorf("%s NAR: session is reusable", name)
		}
	}
}

// A reader of NARs who knows their size stops at the last byte and closes, without
// a Read that returns io.EOF. Guards against taking that for a NAR that was given
// up in the middle, which ends the session, and against the reverse.
func TestNarThatWasReadToItsLastByteLeavesTheSession(t *testing.T) {
	ctx := context.Background()
	c := dial(t, storeWithPaths(), ClientOptions{}, ServeOptions{})
	for _, p := range somePaths() {
		r, err := c.NarFromPath(ctx, p.Info.Path)
		check(t, "nar from path", err)
		_, err = io.ReadFull(r, make([]byte, p.Info.NarSize))
		check(t, "read nar", errors.Join(err, r.Close()))
		if !c.Reusable() {
			t.Error("session is not reusable")
		}
	}
	r, err := c.NarFromPath(ctx, pathNamed("big"))
	check(t, "nar from path", err)
	_, err = c.QueryPathInfo(ctx, pathNamed("dep"))
	same(t, "a question in the middle of a NAR is refused", err != nil, true)
	r.Read(make([]byte, 100))
	check(t, "close", r.Close())
	if c.Reusable() {
		t.Error("session is reusable in the middle of a NAR")
	}
}

// Guards against a peer that is no server, or one that is too old to be of use,
// being taken for a lost connection: the admin reads what it said.
func TestClientRefusesOtherPeersAndVersions(t *testing.T) {
	greeting := func(magic, version uint64) []byte {
		return bytesOf(Latest, func(c *conn) { c.w.Uint64(magic); c.w.Uint64(version) })
	}
	for name, tc := range map[string]struct {
		says []byte
		want string
	}{
		"text":   {[]byte("bash: nix-store: command not found\n"), `shake hands with the server: protocol mismatch, got "bash: nix-store: command not found\n"`},
		"short":  {[]byte("no\n"), `shake hands with the server: protocol mismatch, got "no\n"`},
		"daemon": {greeting(0x6478696f, 1<<8|38), `shake hands with the server: protocol mismatch, got "oixd\x00\x00\x00\x00&\x01\x00\x00\x00\x00\x00\x00"`},
		"old":    {greeting(magicServer, 2<<8|3), "shake hands with the server: this Nix server speaks version 2.3 of the serve protocol; 2.4 or a newer 2.x is needed (Nix 2.0)"},
		"major":  {greeting(magicServer, 3<<8), "shake hands with the server: this Nix server speaks version 3.0 of the serve protocol; 2.4 or a newer 2.x is needed (Nix 2.0)"},
		"silent": {nil, "shake hands with the server: daemon session lost in the handshake: unexpected EOF"},
		"cut":    {greeting(magicServer, uint64(Announced))[:12], "shake hands with the server: daemon session lost in the handshake: unexpected EOF"},
	} {
		_, err := NewClient(context.Background(), hostileServer{bytes.NewReader(tc.says)}, ClientOptions{})
		if err == nil || err.Error() != tc.want {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

// Guards against a handshake that waits for ever.
func TestHandshakeEndsWithItsContext(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	go io.Copy(io.Discard, far)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := NewClient(ctx, near, ClientOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// Guards against an upload that goes on for ever, or for nothing, to a server
// that has exited: nobody reads any more and nobody says so.
func TestUploadEndsWithTheServer(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		r, w := wire.NewReader(far), wire.NewWriter(far)
		r.Uint64()
		r.Uint64()
		w.Uint64(magicServer)
		w.Uint64(uint64(Announced))
		w.Flush()
		r.Uint64() // the command
	}()
	said := &halfClosed{Conn: near, end: make(chan struct{})}
	c, err := NewClient(context.Background(), said, ClientOptions{})
	check(t, "handshake", err)
	close(said.end) // its standard output ends; its input is never read again
	err = calls["AddMultipleToStore"](c)
	var broken *ConnError
	if !errors.As(err, &broken) || broken.Corrupt {
		t.Errorf("upload: %v", err)
	}
	far.Close()
}

// halfClosed is a connection of which the other side stops to speak, once end is
// closed.
type halfClosed struct {
	net.Conn
	end chan struct{}
}

func (h *halfClosed) Read(p []byte) (int, error) {
	select {
	case <-h.end:
		return 0, io.EOF
	default:
	}
	return h.Conn.Read(p)
}

// brokenSource fails behind a path, or in the middle of one.
func brokenSource(o storetest.Object, nar io.Reader, err error) nix.PathSource {
	return nix.PathSource{Count: 2, Next: func() (*nix.PathInfo, io.Reader, error) {
		if nar == nil {
			return nil, nil, err
		}
		r := nar
		nar = nil
		return o.Info, r, nil
	}}
}

// Guards against the fault of the cache being put down to a builder, and against
// half an upload that is taken for a whole one.
func TestBrokenSourceIsNotTheServersFault(t *testing.T) {
	dep, broken := somePaths()[0], errors.New("disk error")
	short := bytes.NewReader(dep.NAR[:100])
	for name, src := range map[string]nix.PathSource{
		"behind":   brokenSource(dep, bytes.NewReader(dep.NAR), broken),
		"inside":   brokenSource(dep, brokenReader{bytes.NewReader(dep.NAR[:50])}, broken),
		"too few":  brokenSource(dep, short, broken),
		"too many": brokenSource(dep, bytes.NewReader(append(bytes.Clone(dep.NAR), 0)), broken),
	} {
		store := newMemStore()
		c := dial(t, store, ClientOptions{}, ServeOptions{Write: true})
		err := c.AddMultipleToStore(context.Background(), nil, src, nix.AddOptions{})
		var lost *ConnError
		if err == nil || errors.As(err, &lost) {
			t.Errorf("%s: %v", name, err)
		}
		if c.Reusable() {
			t.Errorf("%s: session is reusable", name)
		}
	}
}

// Guards against a context that ends and a command that does not, or that is
// put down to the server.
func TestCommandEndsWithItsContext(t *testing.T) {
	store := &waitingStore{memStore: newMemStore(), started: make(chan struct{})}
	c := dial(t, store, ClientOptions{}, ServeOptions{Write: true})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-store.started
		cancel()
	}()
	_, err := c.BuildDerivation(ctx, nil, pathNamed("x.drv"), someDerivation(), nix.BuildNormal)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := <-c.done; !errors.Is(err, ErrHangUp) {
		t.Errorf("serve: %v", err)
	} else {
		c.done <- err
	}
	if _, err := c.QueryValidPaths(context.Background(), nil, false); err == nil {
		t.Error("the session is used on")
	}
}

// Guards against a status of a newer Nix read as another, and against numbers
// that are none.
func TestStatusesOfOtherServers(t *testing.T) {
	for sent, want := range map[uint64]nix.BuildStatus{0: 0, 3: 3, 14: 14, 15: 15, 16: nix.StatusMiscFailure, 255: nix.StatusMiscFailure} {
		c := against(t, func(c *conn) {
			c.w.Uint64(sent)
			c.w.String("")
			c.w.BuildTimes(&nix.BuildResult{})
			c.w.Uint64(0)
		})
		r, err := c.BuildDerivation(context.Background(), nil, pathNamed("x.drv"), someDerivation(), nix.BuildNormal)
		check(t, "build", err)
		same(t, "status", r.Status, want)
	}
	c := against(t, func(c *conn) { c.w.Uint64(math.MaxUint8 + 1) })
	_, err := c.BuildDerivation(context.Background(), nil, pathNamed("x.drv"), someDerivation(), nix.BuildNormal)
	if !wire.IsFormat(err) {
		t.Errorf("got %v", err)
	}
}
