package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
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
		add(readFile(f, name))
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

// Whatever a client says, the server neither panics nor waits for ever, and a
// session that does not end well ends with a sentence or because the client left.
func FuzzServe(f *testing.F) {
	recorded(f, ".c2s", func(says []byte) { f.Add(says) })
	for _, v := range []Version{Oldest, sinceBuildTimes, Latest} {
		for cmd := range handlers {
			f.Add(append(bytesOf(v, hello), bytesOf(v, requestOf(cmd))...))
		}
	}
	opts := allOf(f)
	opts.Limits.MessageBytes = 1 << 20
	opts.Limits.NarSize = 8 << 20
	f.Fuzz(func(t *testing.T, says []byte) {
		greeted := false
		opts := opts
		opts.OnHandshake = func(Version) { greeted = true }
		heard, err := serveAndHangUp(storeWithPaths(), opts, says)
		var sentence *closingError
		if greeted && err != nil && !errors.Is(err, ErrHangUp) && !errors.As(err, &sentence) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("heard %q, then %v", heard, err)
		}
	})
}

// Whatever a server says, the client neither panics nor waits for ever, and is
// not reusable after bytes that it did not understand.
func FuzzClient(f *testing.F) {
	names := sortedCalls()
	recorded(f, ".s2c", func(says []byte) { f.Add(byte(0), byte(6), says) })
	for i, name := range names {
		for j, v := range versions() {
			f.Add(byte(i), byte(j), answersTo(f, v, name))
		}
	}
	f.Fuzz(func(t *testing.T, call, speaks byte, says []byte) {
		clientOpts, _ := at(versions()[int(speaks)%len(versions())])
		c, err := NewClient(context.Background(), hostileServer{bytes.NewReader(says)}, clientOpts)
		if err != nil {
			return
		}
		defer c.Close()
		if err := calls[names[int(call)%len(names)]](c); wire.IsFormat(err) && c.Reusable() {
			t.Errorf("reusable after %v", err)
		}
	})
}

func newConn(v Version, b []byte) *conn {
	c := &conn{r: wire.NewReader(bytes.NewReader(b)), dialect: dialect{version: v}, limits: Limits{}.WithDefaults()}
	c.r.Budget(1 << 20)
	return c
}

// again reads a value, writes it, reads that, and compares what is written then:
// what a peer sends is passed on in a form that stays the same.
func again[T any](read func(*conn) T, write func(*conn, T)) func(*testing.T, Version, []byte) {
	return func(t *testing.T, v Version, b []byte) {
		c := newConn(v, b)
		value := read(c)
		if c.r.Err() != nil {
			return
		}
		first := bytesOf(v, func(c *conn) { write(c, value) })
		c = newConn(v, first)
		value = read(c)
		if c.r.Err() != nil || c.r.More() {
			t.Fatalf("%q is written as %q, which is not read: %v", b, first, c.r.Err())
		}
		if second := bytesOf(v, func(c *conn) { write(c, value) }); !bytes.Equal(first, second) {
			t.Errorf("%q is written as %q, then as %q", b, first, second)
		}
	}
}

func readInfo(c *conn) *nix.PathInfo { return c.readPathInfo(pathNamed("big")) }

// messages are those that are read from one peer and written to another in a
// form that the worker protocol does not have.
var messages = []struct {
	check func(*testing.T, Version, []byte)
	seed  func(*conn)
}{
	{again(readInfo, (*conn).writePathInfo), func(c *conn) { c.writePathInfo(somePaths()[1].Info) }},
	{again((*conn).readBuildResult, (*conn).writeBuildResult), func(c *conn) { c.writeBuildResult(someResult()) }},
	{again((*conn).readBuildOptions, (*conn).writeBuildOptions), func(c *conn) { c.writeBuildOptions(someOptions) }},
	{again((*conn).readExported, (*conn).writeExported), func(c *conn) { c.writeExported(somePaths()[1].Info) }},
}

// Whatever is read from one peer is written to the next in a form that is read as
// the same.
func FuzzMessages(f *testing.F) {
	for i, m := range messages {
		for j, v := range versions() {
			f.Add(byte(i), byte(j), bytesOf(v, m.seed))
		}
	}
	f.Fuzz(func(t *testing.T, kind, speaks byte, b []byte) {
		messages[int(kind)%len(messages)].check(t, versions()[int(speaks)%len(versions())], b)
	})
}
