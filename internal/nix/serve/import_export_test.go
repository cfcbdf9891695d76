package serve

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
	"nixbastion/internal/nix/storetest"
)

// exported reads an export stream.
func (c *rawClient) exported(t *testing.T) (paths []storetest.Object) {
	t.Helper()
	for c.r.Optional() {
		var o storetest.Object
		o.NAR, _ = io.ReadAll(nar.NewReader(c.r))
		o.Info = c.readExported()
		paths = append(paths, o)
	}
	check(t, "export", c.r.Err())
	return paths
}

// Guards against a path before its references, with which the importer can do
// nothing, against one that comes twice, and against what is sent for none.
func TestExportBringsReferencesFirst(t *testing.T) {
	store := newMemStore()
	lib := storetest.NewObject("lib", "lib", pathNamed("outside"))
	tool := storetest.NewObject("a-tool", strings.Repeat("tool", 50_000), lib.Info.Path, pathNamed("a-tool"))
	user := storetest.NewObject("user", "user", tool.Info.Path, lib.Info.Path)
	for _, o := range []storetest.Object{lib, tool, user} {
		store.Put(o)
	}
	c := connect(t, store, ServeOptions{}).greet()
	c.ask(cmdExportPaths, func(c *conn) {
		c.w.Uint64(0)
		c.w.StorePaths([]nix.StorePath{user.Info.Path, tool.Info.Path, lib.Info.Path})
	})
	got := c.exported(t)
	if len(got) != 3 {
		t.Fatalf("%d paths", len(got))
	}
	for i, want := range []storetest.Object{lib, tool, user} {
		same(t, "path", got[i].Info.Path, want.Info.Path)
		same(t, "references", got[i].Info.References, want.Info.References)
		same(t, "deriver", got[i].Info.Deriver, want.Info.Deriver)
		same(t, "NAR is whole", bytes.Equal(got[i].NAR, want.NAR), true)
	}
	c.ask(cmdExportPaths, zeros(2))
	same(t, "export of nothing", len(c.exported(t)), 0)

	c.ask(cmdExportPaths, func(c *conn) { c.w.Uint64(0); c.w.StorePaths([]nix.StorePath{lib.Info.Path, pathNamed("absent")}) })
	c.expectEnd(t, "path '"+pathNamed("absent").String()+"' is not valid")
}

// Guards against an import of which hash or size are taken from anywhere but its
// bytes, against files left behind, and against a stream read to another end than
// it has.
func TestImportIsReadToItsEnd(t *testing.T) {
	opts := allOf(t)
	store := newMemStore()
	c := connect(t, store, opts).greet()
	paths := somePaths()
	c.ask(cmdImportPaths, func(c *conn) {
		for i, p := range paths {
			c.w.Uint64(1)
			c.w.Write(p.NAR)
			c.w.Uint64(exportMagic)
			c.w.StorePath(p.Info.Path)
			c.w.StorePaths(p.Info.References)
			c.w.StorePath(p.Info.Deriver)
			c.w.Uint64(uint64(i))
			if i == 1 {
				c.w.String("an obsolete signature")
			}
		}
		c.w.Uint64(0)
	})
	c.r.Expect("the reply", 1)
	check(t, "import", c.r.Err())
	for _, p := range paths {
		got, err := store.Get(p.Info.Path)
		check(t, "imported path", err)
		want := asUploaded(Oldest, p)
		same(t, "imported info", got.Info, want.Info)
		same(t, "NAR is whole", bytes.Equal(got.NAR, want.NAR), true)
	}
	same(t, "options", store.added, []nix.AddOptions{{DontCheckSigs: true}, {DontCheckSigs: true}})
	c.ask(cmdImportPaths, zeros(1))
	c.r.Expect("the reply to an import of nothing", 1)
	c.ask(cmdQueryValidPaths, func(c *conn) { zeros(2)(c); pathsRequest(c) })
	same(t, "what is valid", c.r.StorePaths(10), []nix.StorePath{pathNamed("dep")})
	if left, err := filepath.Glob(opts.SpoolDir + "/*"); err != nil || len(left) > 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
}

// Guards against imports that nobody bounds, and against reasons that tell a
// client about the disk.
func TestImportsThatEndTheSession(t *testing.T) {
	dep := somePaths()[0]
	withNAR := func(write func(*conn)) func(*conn) {
		return func(c *conn) { c.w.Uint64(1); c.w.Write(dep.NAR); write(c) }
	}
	broken := bytes.Clone(dep.NAR)
	broken[8] = 'X'
	for name, u := range map[string]struct {
		fields func(*conn)
		change func(*ServeOptions)
		want   string
	}{
		"no folder":       {requests[cmdImportPaths], func(o *ServeOptions) { o.SpoolDir = "" }, "ImportPaths is not supported through this proxy"},
		"folder is gone":  {requests[cmdImportPaths], func(o *ServeOptions) { o.SpoolDir += "/gone" }, "internal error; the proxy's log has more, at "},
		"too large":       {requests[cmdImportPaths], func(o *ServeOptions) { o.Limits.NarSize = dep.Info.NarSize - 1 }, "read ImportPaths: expected a NAR of at most 119 bytes, got a larger one (at byte "},
		"no NAR":          {func(c *conn) { c.w.Uint64(1); c.w.Write(broken) }, nil, "read ImportPaths: bad archive: "},
		"no mark":         {withNAR(func(c *conn) { c.w.Uint64(1) }), nil, "read ImportPaths: expected the mark behind an exported NAR 0x4558494e, got 0x1 (at byte "},
		"neither path":    {withNAR(func(c *conn) { c.w.Uint64(exportMagic); c.w.String("/etc/passwd") }), nil, `read ImportPaths: path "/etc/passwd" is not in the Nix store (at byte `},
		"neither 0 nor 1": {func(c *conn) { c.w.Uint64(2) }, nil, "read ImportPaths: expected a tag of at most 1, got 2 (at byte "},
	} {
		opts, store := allOf(t), newMemStore()
		if u.change != nil {
			u.change(&opts)
		}
		_, err := serveAndHangUp(store, opts, bytesOf(Latest, hello), bytesOf(Latest, func(c *conn) { c.w.Uint64(uint64(cmdImportPaths)); u.fields(c) }))
		if err == nil || !strings.HasPrefix(err.Error(), u.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := store.Get(dep.Info.Path); !errors.Is(err, nix.ErrNotFound) {
			t.Errorf("%s: the path is valid", name)
		}
		if left, _ := os.ReadDir(opts.SpoolDir); len(left) > 0 && opts.SpoolDir != "" {
			t.Errorf("%s: files left: %v", name, left)
		}
	}
}

// Guards against an import that fits the limit exactly being refused.
func TestImportOfTheLargestNar(t *testing.T) {
	opts := allOf(t)
	opts.Limits.NarSize = somePaths()[0].Info.NarSize
	c := connect(t, newMemStore(), opts).greet()
	c.askUsual(cmdImportPaths)
	c.r.Expect("the reply", 1)
	check(t, "import", c.r.Err())
}
