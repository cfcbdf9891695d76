package worker

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

// recorded adds what one side of each recorded session said.
func recorded(f *testing.F, ext string, add func(says []byte)) {
	files, err := filepath.Glob("testdata/sessions/*/*" + ext)
	if err != nil || len(files) == 0 {
		f.Fatalf("no recordings: %v", err)
	}
	for _, name := range files {
		says, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		add(says)
	}
}

// sortedCalls are the names of the client's calls, in an order that a corpus can
// refer to.
func sortedCalls() []string {
	var names []string
	for name := range calls {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

var fuzzDialects = []dialect{{version: Oldest}, {version: sinceBuiltOutputs}, {version: Latest}, {version: Latest, features: allFeatures}}

// Whatever a client says, the server neither panics nor waits for ever, and bytes
// that make no sense inside an operation are answered with a sentence.
func FuzzServe(f *testing.F) {
	recorded(f, ".c2s", func(says []byte) { f.Add(says) })
	for _, d := range fuzzDialects {
		for op := range handlers {
			f.Add(append(bytesOf(d, hello), bytesOf(d, requestOf(op))...))
		}
	}
	sentence := bytesOf(latest, func(c *conn) { c.w.Uint64(stderrError) })
	f.Fuzz(func(t *testing.T, says []byte) {
		greeted := false
		var heard bytes.Buffer
		rw := hearing{bytes.NewReader(says), &heard}
		err := Serve(context.Background(), rw, storeWithPaths(), ServeOptions{
			Features: allFeatures, OnHandshake: func(Version) { greeted = true }, Limits: Limits{MessageBytes: 1 << 20},
		})
		if greeted && wire.IsFormat(err) && !bytes.Contains(heard.Bytes(), sentence) {
			t.Errorf("the client is not told of %v", err)
		}
	})
}

type hearing struct {
	*bytes.Reader
	*bytes.Buffer
}

func (h hearing) Read(p []byte) (int, error) { return h.Reader.Read(p) }

func (h hearing) Write(p []byte) (int, error) { return h.Buffer.Write(p) }

// Whatever a daemon says, the client neither panics nor waits for ever, and is
// not reusable after bytes that it did not understand.
func FuzzClient(f *testing.F) {
	names := sortedCalls()
	recorded(f, ".s2c", func(says []byte) { f.Add(byte(0), byte(2), says) })
	for i, name := range names {
		for j, d := range fuzzDialects {
			_, says := answersTo(f, d, name)
			f.Add(byte(i), byte(j), says)
		}
	}
	f.Fuzz(func(t *testing.T, call, speaks byte, says []byte) {
		d := fuzzDialects[int(speaks)%len(fuzzDialects)]
		c, err := NewClient(context.Background(), hostileDaemon{bytes.NewReader(says)}, optionsOf(d))
		if err != nil {
			return
		}
		defer c.Close()
		err = calls[names[int(call)%len(names)]](c)
		if wire.IsFormat(err) && c.Reusable() {
			t.Errorf("reusable after %v", err)
		}
	})
}

// again reads a value, writes it, reads that, and compares what is written then:
// what a peer sends is passed on in a form that stays the same.
func again[T any](read func(*conn) T, write func(*conn, T)) func(*testing.T, dialect, []byte) {
	return func(t *testing.T, d dialect, b []byte) {
		c := newConn(d, b)
		v := read(c)
		if c.r.Err() != nil {
			return
		}
		first := bytesOf(d, func(c *conn) { write(c, v) })
		c = newConn(d, first)
		v = read(c)
		if c.r.Err() != nil || c.r.More() {
			t.Fatalf("%q is written as %q, which is not read: %v", b, first, c.r.Err())
		}
		if second := bytesOf(d, func(c *conn) { write(c, v) }); !bytes.Equal(first, second) {
			t.Errorf("%q is written as %q, then as %q", b, first, second)
		}
	}
}

func newConn(d dialect, b []byte) *conn {
	c := &conn{r: wire.NewReader(bytes.NewReader(b)), dialect: d, limits: Limits{}.WithDefaults()}
	c.r.Budget(1 << 20)
	return c
}

// messages are those that are read from one peer and written to another.
var messages = []struct {
	check func(*testing.T, dialect, []byte)
	seed  func(*conn)
}{
	{again((*conn).readDerivation, func(c *conn, drv *nix.BasicDerivation) { c.w.Derivation(drv) }), func(c *conn) { c.w.Derivation(someDerivation()) }},
	{again((*conn).readValidPathInfo, func(c *conn, info *nix.PathInfo) { c.w.ValidPathInfo(info) }), func(c *conn) { c.w.ValidPathInfo(somePaths()[1].info) }},
	{again((*conn).readBuildResult, (*conn).writeBuildResult), func(c *conn) { c.writeBuildResult(someResult()) }},
	{again((*conn).readDerivedPaths, (*conn).writeDerivedPaths), func(c *conn) {
		c.writeDerivedPaths([]nix.DerivedPath{{Path: pathNamed("x.drv"), Built: true, Outputs: []string{"dev", "out"}}, {Path: pathNamed("y")}})
	}},
	{again((*conn).readRealisation, (*conn).writeRealisation), func(c *conn) { c.writeRealisation(someRealisation(c)) }},
	{again((*conn).readDrvOutput, (*conn).writeDrvOutput), func(c *conn) { c.writeDrvOutput(someRealisation(c).ID) }},
	{again((*conn).readMissing, (*conn).writeMissing), func(c *conn) { c.writeMissing(someMissing) }},
	{again((*conn).readOptions, (*conn).writeOptions), func(c *conn) { c.writeOptions(nix.ClientOptions{Overrides: map[string]string{"a": "b"}}) }},
	{again(readAnyLog, (*conn).writeLog), func(c *conn) { c.writeLog(someMessages[0]) }},
	{again(readAnyError, (*conn).writeRemoteError), func(c *conn) {
		c.writeRemoteError(&nix.RemoteError{Message: "no", Traces: []string{"why"}, Status: 100})
	}},
}

func readAnyLog(c *conn) nix.LogMessage { return c.readLog(c.r.Uint64()) }

func readAnyError(c *conn) *nix.RemoteError {
	c.r.Expect("an error", stderrError)
	return c.readError()
}

// Whatever is read from one peer is written to the next in a form that is read as
// the same.
func FuzzMessages(f *testing.F) {
	for i, m := range messages {
		for j, d := range fuzzDialects {
			f.Add(byte(i), byte(j), bytesOf(d, m.seed))
		}
	}
	f.Fuzz(func(t *testing.T, kind, speaks byte, b []byte) {
		messages[int(kind)%len(messages)].check(t, fuzzDialects[int(speaks)%len(fuzzDialects)], b)
	})
}

// Whatever derivation a client sends, nothing that is worked out of it panics, and
// one that has requirements prints in a form that the parser of .drv files reads.
func FuzzBasicDerivation(f *testing.F) {
	f.Add(bytesOf(latest, func(c *conn) { c.w.Derivation(someDerivation()) }))
	recorded(f, ".c2s", func(says []byte) {
		at := bytes.Index(says, bytesOf(latest, func(c *conn) { c.w.Uint64(uint64(opBuildDerivation)) }))
		if at >= 0 {
			c := newConn(latest, says[at+8:])
			c.r.StorePath()
			f.Add(says[at+8+int(c.r.Offset()):])
		}
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newConn(latest, b)
		drv := c.readDerivation()
		if c.r.Err() != nil {
			return
		}
		drv.OutputPaths()
		for _, o := range drv.Outputs {
			drv.OutputHash(o.Name)
			o.CheckOutput("x")
		}
		if _, _, err := drv.Requirements(); err != nil {
			return
		}
		full := nix.Derivation{BasicDerivation: *drv}
		text := full.ATerm()
		if again, err := nix.ParseDerivation("x", []byte(text)); err == nil && again.ATerm() != text {
			t.Errorf("%s is read as %s", text, again.ATerm())
		} else if err != nil && strings.Contains(err.Error(), "not in the form") {
			t.Errorf("what is printed is not in the form of Nix: %v\n%s", err, text)
		}
	})
}
