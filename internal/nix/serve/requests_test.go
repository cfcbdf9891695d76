package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/storetest"
	"nixbastion/internal/nix/wire"
)

// requests writes the fields of every command, with everything in them that can
// be in them.
var requests = map[Command]func(*conn){
	cmdQueryValidPaths: func(c *conn) {
		c.w.Bool(true)
		c.w.Bool(true)
		c.w.StorePaths([]nix.StorePath{pathNamed("dep"), pathNamed("absent")})
	},
	cmdQueryPathInfos: pathsRequest,
	cmdDumpStorePath:  func(c *conn) { c.w.StorePath(pathNamed("dep")) },
	cmdImportPaths: func(c *conn) {
		for _, p := range somePaths()[:1] {
			c.w.Uint64(1)
			c.w.Write(p.NAR)
			c.writeExported(p.Info)
		}
		c.w.Uint64(0)
	},
	cmdExportPaths: func(c *conn) { c.w.Uint64(0); pathsRequest(c) },
	cmdBuildPaths: func(c *conn) {
		c.w.Uint64(2)
		c.w.OldDerivedPath(nix.DerivedPath{Path: pathNamed("x.drv"), Built: true, Outputs: []string{"dev", "out"}})
		c.w.OldDerivedPath(nix.DerivedPath{Path: pathNamed("dep")})
		c.writeBuildOptions(someOptions)
	},
	cmdQueryClosure: func(c *conn) { c.w.Bool(true); pathsRequest(c) },
	cmdBuildDerivation: func(c *conn) {
		c.w.StorePath(pathNamed("x.drv"))
		drv := someDerivation()
		drv.Env[2].Value = "short"
		c.w.Derivation(drv)
		c.writeBuildOptions(someOptions)
	},
	cmdAddToStoreNar: func(c *conn) { uploadRequest(c, somePaths()[0]) },
}

// requestVersions are those in which requests differ.
var requestVersions = []Version{Oldest, sinceLogLimit, sinceRepeats, Latest}

func pathsRequest(c *conn) { c.w.StorePaths([]nix.StorePath{pathNamed("dep")}) }

func uploadRequest(c *conn, o storetest.Object) {
	c.w.ValidPathInfo(o.Info)
	c.w.Write(o.NAR)
}

var someOptions = BuildOptions{MaxSilentTime: 5, BuildTimeout: 6, MaxLogSize: 7, EnforceDeterminism: true, KeepFailed: true}

// bytesOf returns what write writes.
func bytesOf(v Version, write func(*conn)) []byte {
	var b bytes.Buffer
	c := &conn{w: wire.NewWriter(&b), dialect: dialect{version: v}}
	write(c)
	c.w.Flush()
	return b.Bytes()
}

func hello(c *conn) {
	c.w.Uint64(magicClient)
	c.w.Uint64(uint64(c.version))
}

func requestOf(cmd Command) func(*conn) {
	return func(c *conn) {
		c.w.Uint64(uint64(cmd))
		requests[cmd](c)
	}
}

// allOf are options with which every command is served.
func allOf(t testing.TB) ServeOptions {
	return ServeOptions{version: Latest, Write: true, SpoolDir: t.TempDir()}
}

// recordedClient says what it has to say at once, and hangs up when nothing
// moves any more.
type recordedClient struct {
	says  *bytes.Reader
	heard bytes.Buffer
}

func (c *recordedClient) Read(p []byte) (int, error) {
	if n, _ := c.says.Read(p); n > 0 {
		return n, nil
	}
	time.Sleep(time.Hour) // on the test's clock, which waits for everybody else
	return 0, io.EOF
}

func (c *recordedClient) Write(p []byte) (int, error) { return c.heard.Write(p) }

// serveBytes runs a server on what a client says that waits with hanging up until
// nothing moves any more. It must be called inside a bubble of synctest.
func serveBytes(store nix.Store, opts ServeOptions, says ...[]byte) (heard []byte, err error) {
	client := &recordedClient{says: bytes.NewReader(bytes.Join(says, nil))}
	err = Serve(context.Background(), client, store, opts)
	time.Sleep(2 * time.Hour) // so that a watch sees the end before the bubble ends
	return client.heard.Bytes(), err
}

// serveAndHangUp runs a server on what a client says that hangs up behind it.
func serveAndHangUp(store nix.Store, opts ServeOptions, says ...[]byte) (heard []byte, err error) {
	var answer bytes.Buffer
	rw := struct {
		io.Reader
		io.Writer
	}{bytes.NewReader(bytes.Join(says, nil)), &answer}
	err = Serve(context.Background(), rw, store, opts)
	return answer.Bytes(), err
}

// replyTail is what a server says last if the session survived: the answer to
// QueryValidPaths of a path that the store holds and of one that it does not.
func replyTail(v Version) []byte {
	return bytesOf(v, func(c *conn) { c.w.StorePaths([]nix.StorePath{pathNamed("dep")}) })
}

// lazyStore reads a single byte of each upload and then has its answer.
type lazyStore struct{ *memStore }

func (l lazyStore) AddMultipleToStore(_ context.Context, _ nix.Logger, src nix.PathSource, _ nix.AddOptions) error {
	_, nar, err := src.Next()
	if err == nil {
		io.ReadFull(nar, make([]byte, 1))
	}
	return err
}

// Guards against a version at which a command is read or answered in another
// length than it has, or an upload not skipped to its end, so that the next one
// is misunderstood.
func TestNextCommandIsAnsweredAtEveryVersion(t *testing.T) {
	if len(requests) != len(handlers) || len(commandNames) != len(handlers) {
		t.Fatalf("%d requests and %d names for %d commands", len(requests), len(commandNames), len(handlers))
	}
	opts := allOf(t)
	for _, v := range versions() {
		for ability, store := range map[string]func() nix.Store{
			"able": func() nix.Store { return storeWithPaths() },
			"core": func() nix.Store { return coreStore{storeWithPaths()} },
			"lazy": func() nix.Store { return lazyStore{storeWithPaths()} },
		} {
			for cmd := range handlers {
				synctest.Test(t, func(t *testing.T) {
					heard, err := serveBytes(store(), opts, bytesOf(v, hello), bytesOf(v, requestOf(cmd)), bytesOf(v, requestOf(cmdQueryValidPaths)))
					if err != nil || !bytes.HasSuffix(heard, replyTail(v)) {
						t.Errorf("%s, %s, %s: next command is not answered: %v\n%q", v, cmd, ability, err, heard)
					}
				})
			}
		}
	}
}

// Guards against a number that is answered though the form of its request is not
// known.
func TestEveryOtherNumberEndsTheSessionWithASentence(t *testing.T) {
	numbers := []Command{1000, 1 << 32, 1<<32 + 1, 1 << 63, math.MaxUint64}
	for cmd := range Command(64) {
		numbers = append(numbers, cmd)
	}
	for _, cmd := range numbers {
		if _, known := handlers[cmd]; known {
			continue
		}
		request := bytesOf(Latest, func(c *conn) { c.w.Uint64(uint64(cmd)) })
		heard, err := serveAndHangUp(storeWithPaths(), allOf(t), bytesOf(Latest, hello), request, bytesOf(Latest, requestOf(cmdQueryValidPaths)))
		if want := fmt.Sprintf("unknown serve command %d", uint64(cmd)); err == nil || err.Error() != want {
			t.Errorf("%d: %v", uint64(cmd), err)
		}
		if len(heard) != 16 {
			t.Errorf("%d: server says %q", uint64(cmd), heard)
		}
	}
}

// Guards against a request that ends early being carried out, taken for a clean
// end, or answered.
func TestRequestCutAtEveryByteIsAHangUp(t *testing.T) {
	opts := allOf(t)
	for _, v := range requestVersions {
		for cmd := range handlers {
			greeting, request := bytesOf(v, hello), bytesOf(v, requestOf(cmd))
			for n := 1; n < len(request); n++ {
				store := storeWithPaths()
				heard, err := serveAndHangUp(store, opts, greeting, request[:n])
				if !errors.Is(err, io.ErrUnexpectedEOF) || n >= 8 && !errors.Is(err, ErrHangUp) {
					t.Fatalf("%s, %s cut at %d of %d: %v", v, cmd, n, len(request), err)
				}
				if len(heard) != 16 {
					t.Fatalf("%s, %s cut at %d of %d is answered", v, cmd, n, len(request))
				}
				if store.drv != nil || store.targets != nil {
					t.Fatalf("%s, %s cut at %d of %d is carried out", v, cmd, n, len(request))
				}
			}
		}
	}
}

var lies = []uint64{
	0, 1, 2, 255, 256, wire.MaxString, wire.MaxString + 1, 1 << 20, 1<<20 + 1, math.MaxUint32, 1 << 32, 1 << 63, math.MaxUint64,
}

// Guards against a length, count or size that lies making the server panic, wait
// or allocate. Every integer of every request is replaced in turn.
func TestLyingIntegersCostTheServerNothing(t *testing.T) {
	opts := allOf(t)
	for _, v := range requestVersions {
		for cmd := range handlers {
			greeting, request := bytesOf(v, hello), bytesOf(v, requestOf(cmd))
			for at := 8; at+8 <= len(request); at += 8 {
				for _, lie := range lies {
					says := bytes.Clone(request)
					putUint64(says[at:], lie)
					store := storeWithPaths()
					grown := allocated(func() { serveAndHangUp(store, opts, greeting, says) })
					if grown > 1<<20 {
						t.Fatalf("%s, %s with %d at byte %d: allocated %d bytes", v, cmd, lie, at, grown)
					}
				}
			}
		}
	}
}

// Guards against an absurd length that is waited for, or skipped and taken for
// one that is right: whatever integer of a request is replaced, either it is one
// that may be anything, and the next command is answered, or the session ends
// with a sentence about it.
func TestAbsurdIntegersAreToldInASentence(t *testing.T) {
	opts := allOf(t)
	for _, v := range versions() {
		greeting, next := bytesOf(v, hello), bytesOf(v, requestOf(cmdQueryValidPaths))
		for cmd := range handlers {
			refused := 0
			request := bytesOf(v, requestOf(cmd))
			for at := 8; at+8 <= len(request); at += 8 {
				for _, n := range []uint64{1 << 63, math.MaxUint64} {
					if isText(request, at) {
						continue
					}
					says := bytes.Clone(request)
					putUint64(says[at:], n)
					heard, err := serveAndHangUp(storeWithPaths(), opts, greeting, says, next)
					var sentence *closingError
					switch {
					case bytes.HasSuffix(heard, replyTail(v)):
					case errors.As(err, &sentence):
						refused++
					default:
						t.Errorf("%s, %s with %#x at byte %d: %v, heard %q", v, cmd, n, at, err, heard)
					}
				}
			}
			if refused == 0 {
				t.Errorf("%s, %s: nothing is refused", v, cmd)
			}
		}
	}
}

// isText reports whether the eight bytes are not an integer of the protocol but
// part of a string: no number that the requests have is as large.
func isText(request []byte, at int) bool {
	for _, c := range request[at+4 : at+8] {
		if c != 0 && c != 0xff {
			return true
		}
	}
	return false
}

// limited is a collection, string or size with the most that it may have.
var limited = map[string]struct {
	cmd   Command
	limit uint64
	// before writes what comes before the count or length.
	before func(*conn)
}{
	"valid paths":        {cmdQueryValidPaths, wire.DefaultPaths, zeros(2)},
	"path infos":         {cmdQueryPathInfos, wire.DefaultPaths, zeros(0)},
	"path":               {cmdDumpStorePath, 1024, zeros(0)},
	"signature":          {cmdImportPaths, wire.MaxString, exportedUpTo(true)},
	"exported refs":      {cmdImportPaths, wire.MaxReferences, exportedUpTo(false)},
	"exports":            {cmdExportPaths, maxExport, zeros(1)},
	"targets":            {cmdBuildPaths, wire.DefaultPaths, zeros(0)},
	"target":             {cmdBuildPaths, wire.MaxDerivedPath, func(c *conn) { c.w.Uint64(1) }},
	"silence":            {cmdBuildPaths, math.MaxUint32, zeros(1)},
	"timeout":            {cmdBuildPaths, math.MaxUint32, zeros(2)},
	"repeats":            {cmdBuildPaths, math.MaxUint32, zeros(4)},
	"closure":            {cmdQueryClosure, wire.DefaultPaths, zeros(1)},
	"outputs":            {cmdBuildDerivation, wire.MaxOutputs, derivationUpTo(0)},
	"output name":        {cmdBuildDerivation, wire.MaxString, func(c *conn) { derivationUpTo(0)(c); c.w.Uint64(1) }},
	"sources":            {cmdBuildDerivation, wire.DefaultPaths, derivationUpTo(1)},
	"platform":           {cmdBuildDerivation, wire.MaxString, derivationUpTo(2)},
	"arguments":          {cmdBuildDerivation, wire.MaxArguments, derivationUpTo(4)},
	"environment":        {cmdBuildDerivation, wire.MaxEnv, derivationUpTo(5)},
	"silence of build":   {cmdBuildDerivation, math.MaxUint32, derivationUpTo(6)},
	"NAR hash":           {cmdAddToStoreNar, wire.MaxString, func(c *conn) { c.w.StorePath(pathNamed("dep")); c.w.String("") }},
	"references":         {cmdAddToStoreNar, wire.MaxReferences, infoUpTo(0)},
	"time":               {cmdAddToStoreNar, math.MaxInt64, infoUpTo(1)},
	"NAR size":           {cmdAddToStoreNar, wire.DefaultNarSize, infoUpTo(2)},
	"signatures of info": {cmdAddToStoreNar, wire.MaxSigs, infoUpTo(4)},
	"content address":    {cmdAddToStoreNar, wire.MaxString, infoUpTo(5)},
}

func zeros(n int) func(*conn) { return func(c *conn) { c.w.Write(make([]byte, n*8)) } }

// exportedUpTo writes an exported path up to its references, or its signature.
func exportedUpTo(signature bool) func(*conn) {
	return func(c *conn) {
		c.w.Uint64(1)
		c.w.Write(somePaths()[0].NAR)
		c.w.Uint64(exportMagic)
		c.w.StorePath(pathNamed("dep"))
		if signature {
			c.w.Uint64(0)
			c.w.Uint64(0)
			c.w.Uint64(1)
		}
	}
}

// derivationUpTo writes a path and n empty parts of a derivation.
func derivationUpTo(n int) func(*conn) {
	return func(c *conn) { c.w.StorePath(pathNamed("x.drv")); zeros(n)(c) }
}

// infoUpTo writes a path, no deriver, a hash and n empty parts of a path info.
func infoUpTo(n int) func(*conn) {
	return func(c *conn) {
		c.w.StorePath(pathNamed("dep"))
		c.w.String("")
		c.w.String(somePaths()[0].Info.NarHash.Base16())
		zeros(n)(c)
	}
}

// Guards against a limit that is missing, lower than it says, or one too high,
// and against memory for what is only claimed.
func TestLimitsHoldExactly(t *testing.T) {
	opts := allOf(t)
	ask := func(cmd Command, before func(*conn), n uint64) (err error) {
		request := bytesOf(Latest, func(c *conn) {
			c.w.Uint64(uint64(cmd))
			before(c)
			c.w.Uint64(n)
		})
		grown := allocated(func() { _, err = serveAndHangUp(storeWithPaths(), opts, bytesOf(Latest, hello), request) })
		if grown > 1<<20 {
			t.Errorf("%s with %d: allocated %d bytes", cmd, n, grown)
		}
		return err
	}
	for name, l := range limited {
		for _, n := range []uint64{0, 1, l.limit} {
			// What follows is missing, or was written wrongly: only the number counts.
			if err := ask(l.cmd, l.before, n); wire.IsFormat(err) && strings.Contains(err.Error(), "of at most") {
				t.Errorf("%s: %d is refused: %v", name, n, err)
			}
		}
		for _, n := range []uint64{l.limit + 1, math.MaxUint32, 1 << 32, 1 << 63, math.MaxUint64} {
			if n <= l.limit {
				continue
			}
			if err := ask(l.cmd, l.before, n); !wire.IsFormat(err) || !strings.Contains(err.Error(), "of at most") {
				t.Errorf("%s: with %d: %v", name, n, err)
			}
		}
	}
}

// Guards against a message that stays within each limit and takes more memory
// than all of them together should.
func TestMessageHasABudget(t *testing.T) {
	opts := allOf(t)
	opts.Limits.MessageBytes = 10_000
	for cmd, request := range map[Command]func(*conn){
		cmdQueryValidPaths: func(c *conn) {
			zeros(2)(c)
			c.w.Uint64(1000)
			for range 1000 {
				c.w.StorePath(pathNamed("dep"))
			}
		},
		cmdBuildDerivation: func(c *conn) {
			c.w.StorePath(pathNamed("x.drv"))
			c.w.Derivation(&nix.BasicDerivation{Builder: strings.Repeat("x", 10_000)})
			c.writeBuildOptions(BuildOptions{})
		},
	} {
		says := bytesOf(Latest, func(c *conn) { c.w.Uint64(uint64(cmd)); request(c) })
		_, err := serveAndHangUp(storeWithPaths(), opts, bytesOf(Latest, hello), says)
		if !wire.IsFormat(err) || !strings.Contains(err.Error(), "message is larger than this end accepts") {
			t.Errorf("%s: %v", cmd, err)
		}
	}
}

func putUint64(b []byte, n uint64) {
	for i := range 8 {
		b[i] = byte(n >> (8 * i))
	}
}

// allocated returns how many bytes f allocates, kept or not.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
