package nar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"
)

// tokens writes an archive by hand, so that tests can break every rule.
func tokens(parts ...string) []byte { return []byte(literal(parts...)) }

func file(contents string) []string {
	return []string{"(", "type", "regular", "contents", contents, ")"}
}

func directory(entries ...[]string) []string {
	t := []string{"(", "type", "directory"}
	for _, e := range entries {
		t = append(t, e...)
	}
	return append(t, ")")
}

func entry(name string, node []string) []string {
	t := append([]string{"entry", "(", "name", name, "node"}, node...)
	return append(t, ")")
}

func archive(node []string) []byte {
	return tokens(append([]string{"nix-archive-1"}, node...)...)
}

func symlink(target string) []string { return []string{"(", "type", "symlink", "target", target, ")"} }

func nested(levels int) []byte {
	node := file("x")
	for range levels - 1 {
		node = directory(entry("d", node))
	}
	return archive(node)
}

// samples are valid archives of every shape.
func samples() map[string][]byte {
	return map[string][]byte{
		"empty file":      archive(file("")),
		"file":            archive(file("hello\n")),
		"no padding":      archive(file("12345678")),
		"executable":      archive([]string{"(", "type", "regular", "executable", "", "contents", "#!", ")"}),
		"symlink":         archive(symlink("/nix/store")),
		"longest target":  archive(symlink(strings.Repeat("t", MaxTarget))),
		"empty directory": archive(directory()),
		"tree": archive(directory(
			entry(".hidden", file("")),
			entry("a", directory(entry("b", file("deep")), entry("c", symlink("b")))),
			entry("a.b", file("between")),
			entry("b", directory()),
			entry("\xff", file("not UTF-8")),
		)),
		"longest name": archive(directory(entry(strings.Repeat("n", MaxName), file("")))),
		"deepest":      nested(MaxDepth),
		"case hack":    archive(directory(entry("a~nix~case~hack~1", file("")))),
	}
}

func readAll(src io.Reader) ([]byte, error) { return io.ReadAll(NewReader(src)) }

// Guards against an archive being altered, cut or run past on its way through,
// whatever the sizes of the pieces in which source and caller deal.
func TestReaderHandsOnExactlyOneArchive(t *testing.T) {
	const behind = "the next thing of the protocol"
	sources := map[string]func(io.Reader) io.Reader{
		"whole":    func(r io.Reader) io.Reader { return r },
		"halves":   iotest.HalfReader,
		"bytewise": iotest.OneByteReader,
	}
	for name, want := range samples() {
		for how, source := range sources {
			rest := strings.NewReader(string(want) + behind)
			got, err := readAll(source(rest))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %s: got %d of %d bytes, %v", name, how, len(got), len(want), err)
			}
			if left := rest.Len(); left != len(behind) {
				t.Errorf("%s, %s: %d bytes left in the stream, not %d", name, how, left, len(behind))
			}
		}
		got, err := io.ReadAll(iotest.OneByteReader(NewReader(bytes.NewReader(want))))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s, read bytewise: got %d of %d bytes, %v", name, len(got), len(want), err)
		}
		got, err = readAll(iotest.DataErrReader(bytes.NewReader(want)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s, EOF with the last byte: got %d of %d bytes, %v", name, len(got), len(want), err)
		}
	}
}

// Guards against a validator that depends on where pieces begin and end, and
// against a Rest that promises too much, too little or nothing.
func TestValidatorIsTheSameForAllPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, data := range samples() {
		for range 50 {
			v := NewValidator(Visitor{})
			for at := 0; at < len(data); {
				if rest := v.Rest(); rest == 0 || rest > uint64(len(data)-at) {
					t.Fatalf("%s: %d bytes are promised of %d", name, rest, len(data)-at)
				}
				piece := data[at:min(len(data), at+1+rng.IntN(60))]
				if n, err := v.Write(piece); err != nil || n != len(piece) {
					t.Fatalf("%s: at %d: %v", name, at, err)
				}
				at += len(piece)
			}
			if !v.Done() || v.Rest() != 0 || v.Size() != uint64(len(data)) {
				t.Fatalf("%s: done %v, size %d of %d", name, v.Done(), v.Size(), len(data))
			}
			if _, err := v.Write([]byte{0}); err == nil {
				t.Fatalf("%s: a byte behind the end is accepted", name)
			}
		}
	}
}

// Guards against a cut archive that passes for a whole one.
func TestEveryCutIsSeen(t *testing.T) {
	for name, data := range samples() {
		for n := range data {
			got, err := readAll(bytes.NewReader(data[:n]))
			if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) != n {
				t.Fatalf("%s cut at %d: %d bytes, %v", name, n, len(got), err)
			}
		}
	}
}

// Guards against what another reader of the archive would see differently or
// what would lead it out of the directory it unpacks to.
func TestViolationsAreRefused(t *testing.T) {
	short := archive(file("hello"))
	dirtyContents := bytes.Clone(short)
	dirtyContents[96+7] = 1
	dirtyName := archive(directory(entry("a", file(""))))
	dirtyName[bytes.Index(dirtyName, tokens("a"))+15] = 1
	dirtyTarget := archive(symlink("t"))
	dirtyTarget[bytes.Index(dirtyTarget, tokens("t"))+9] = 1
	huge := archive(file(""))
	binary.LittleEndian.PutUint64(huge[88:], 1<<63)

	for name, c := range map[string]struct {
		data   []byte
		offset uint64
		text   string
	}{
		"empty magic":           {tokens("", "(", "type", "regular", "contents", "", ")"), 0, `"nix-archive-1"`},
		"other version":         {tokens("nix-archive-2", "(", "type", "regular"), 0, `"nix-archive-1"`},
		"no node":               {tokens("nix-archive-1", ")", "type", "regular"), 24, `"("`},
		"no type":               {tokens("nix-archive-1", "(", "tape", "regular"), 40, `"type"`},
		"unknown type":          {archive([]string{"(", "type", "fifo", ")"}), 56, "type"},
		"type like a directory": {archive([]string{"(", "type", "directorz", "entry", ")"}), 72, "type"},
		"contents missing":      {archive([]string{"(", "type", "regular", ")", "", "", ""}), 72, `"contents"`},
		"executable is set": {archive([]string{"(", "type", "regular", "executable", "x", "contents", "", ")"}),
			88, `"executable", ""`},
		"executable twice": {archive([]string{"(", "type", "regular", "executable", "", "executable", "", "contents", "", ")"}),
			88, `"executable", ""`},
		"executable behind contents": {archive([]string{"(", "type", "regular", "contents", "", "executable", "", ")"}),
			96, `")"`},
		"not closed":          {archive([]string{"(", "type", "regular", "contents", "", "("}), 96, `")"`},
		"file too long":       {huge, 88, "file of 9223372036854775808 bytes"},
		"padding of contents": {dirtyContents, 103, "padding"},
		"padding of name":     {dirtyName, 143, "padding"},
		"padding of target":   {dirtyTarget, 97, "padding"},
		"empty target":        {archive(symlink("")), 88, "target of 0 bytes"},
		"long target":         {archive(symlink(strings.Repeat("t", MaxTarget+1))), 88, "target of 4096 bytes"},
		"NUL in target":       {archive(symlink("a\x00b")), 97, "NUL"},
		"target missing":      {archive([]string{"(", "type", "symlink", "aim", "x", ")"}), 72, `"target"`},
		"no entry":            {archive([]string{"(", "type", "directory", "exit", "("}), 80, `"entry"`},
		"node before name":    {archive(directory([]string{"entry", "(", "node", "name", "a", ")"})), 112, `"name"`},
		"no name":             {archive(directory(entry("", file("")))), 128, "name of 0 bytes"},
		"long name":           {archive(directory(entry(strings.Repeat("n", MaxName+1), file("")))), 128, "name of 256 bytes"},
		"dot":                 {archive(directory(entry(".", file("")))), 136, `"."`},
		"dot dot":             {archive(directory(entry("..", file("")))), 136, `".."`},
		"slash":               {archive(directory(entry("a/b", file("")))), 137, `'/'`},
		"NUL in name":         {archive(directory(entry("a\x00", file("")))), 137, `'\x00'`},
		"same name twice":     {archive(directory(entry("a", file("")), entry("a", file("")))), 320, "does not come after"},
		"names out of order":  {archive(directory(entry("b", file("")), entry("a", file("")))), 320, "does not come after"},
		"too deep":            {nested(MaxDepth + 1), 80 + 63*136 + 64, "64 nodes"},
		"entry not closed":    {archive(directory(append(entry("a", file(""))[:11], "entry"))), 248, `")"`},
	} {
		_, err := readAll(bytes.NewReader(c.data))
		var syntax *SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		if syntax.Offset != c.offset || !strings.Contains(syntax.Message, c.text) {
			t.Errorf("%s: got %v, expected %q at byte %d", name, err, c.text, c.offset)
		}
		v := NewValidator(Visitor{})
		_, err = io.Copy(v, iotest.OneByteReader(bytes.NewReader(c.data)))
		if err == nil || err.Error() != syntax.Error() {
			t.Errorf("%s, bytewise: got %v, expected %v", name, err, syntax)
		}
	}
}

// Guards against a directory that takes the names of its neighbour for its own.
func TestNamesAreComparedWithinTheirDirectory(t *testing.T) {
	data := archive(directory(
		entry("a", directory(entry("z", file("")))),
		entry("b", directory(entry("a", file("")))),
	))
	if _, err := readAll(bytes.NewReader(data)); err != nil {
		t.Error(err)
	}
}

// Guards against a visitor that is told other files than are in the archive.
func TestVisitorSeesEveryNode(t *testing.T) {
	var got []Node
	var contents strings.Builder
	r := NewVisitingReader(iotest.HalfReader(bytes.NewReader(samples()["tree"])), Visitor{
		Node:     func(n Node) { got = append(got, n) },
		Contents: func(p []byte) { contents.Write(p) },
	})
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	want := []Node{
		{Kind: Directory},
		{Path: ".hidden", Kind: Regular},
		{Path: "a", Kind: Directory},
		{Path: "a/b", Kind: Regular, Size: 4},
		{Path: "a/c", Kind: Symlink, Target: "b"},
		{Path: "a.b", Kind: Regular, Size: 7},
		{Path: "b", Kind: Directory},
		{Path: "\xff", Kind: Regular, Size: 9},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %+v, expected %+v", got[i], want[i])
		}
	}
	if contents.String() != "deepbetweennot UTF-8" {
		t.Errorf("got contents %q", &contents)
	}
}

// Guards against an error of the source that is taken for the end.
func TestReaderReportsErrorsOfItsSource(t *testing.T) {
	broken := errors.New("line is dead")
	data := samples()["file"]
	for n := range data {
		src := io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken))
		if got, err := readAll(src); err != broken || len(got) != n {
			t.Fatalf("broken at %d: got %d bytes, %v", n, len(got), err)
		}
	}
}

// Guards against a single file whose bytes or flags are not those of the
// archive, and against reading beyond it.
func TestSingleFileReadsContents(t *testing.T) {
	for _, contents := range []string{"", "x", "12345678", strings.Repeat("long ", 10000)} {
		for _, executable := range []bool{false, true} {
			var b bytes.Buffer
			if err := WriteRegular(&b, executable, uint64(len(contents)), strings.NewReader(contents)); err != nil {
				t.Fatal(err)
			}
			if FileSize(executable, uint64(len(contents))) != uint64(b.Len()) {
				t.Errorf("file size is %d", b.Len())
			}
			b.WriteString("behind")
			f, err := SingleFile(&b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(f)
			if err != nil || string(got) != contents || f.Executable != executable || f.Size != uint64(len(contents)) {
				t.Errorf("got %d bytes, %+v, %v", len(got), f, err)
			}
			if b.String() != "behind" {
				t.Errorf("left %q", b.String())
			}
		}
	}
}

// Guards against a directory or symlink that passes for a file, and against an
// archive whose end is missing or wrong.
func TestSingleFileRefusesOthers(t *testing.T) {
	for _, name := range []string{"tree", "symlink", "empty directory", "longest target"} {
		if _, err := SingleFile(bytes.NewReader(samples()[name])); err != ErrNotFile {
			t.Errorf("%s: got %v", name, err)
		}
	}
	data := samples()["executable"]
	for n := range data {
		f, err := SingleFile(bytes.NewReader(data[:n]))
		if err == nil {
			_, err = io.ReadAll(f)
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	f, err := SingleFile(bytes.NewReader(archive([]string{"(", "type", "regular", "contents", "x", "("})))
	if err != nil {
		t.Fatal(err)
	}
	var syntax *SyntaxError
	if _, err = io.ReadAll(f); !errors.As(err, &syntax) {
		t.Errorf("wrong end: %v", err)
	}
}

// Guards against a file that shrank while it was packed.
func TestWriteRegularNeedsAllContents(t *testing.T) {
	if err := WriteRegular(io.Discard, false, 5, strings.NewReader("four")); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
}

// Guards against a tree that is packed differently from the archive of it.
func TestPackWritesTheOneArchive(t *testing.T) {
	tree := fstest.MapFS{
		".hidden": {Mode: 0o644},
		"a/b":     {Mode: 0o400, Data: []byte("deep")},
		"a/c":     {Mode: 0o777 | 1<<27, Data: []byte("b")},
		"a.b":     {Mode: 0o755, Data: []byte("between")},
	}
	want := archive(directory(
		entry(".hidden", file("")),
		entry("a", directory(entry("b", file("deep")), entry("c", symlink("b")))),
		entry("a.b", []string{"(", "type", "regular", "executable", "", "contents", "between", ")"}),
	))
	var got bytes.Buffer
	if err := Pack(&got, tree, "."); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got %q", got.Bytes())
	}
	got.Reset()
	if err := WriteSymlink(&got, "b"); err != nil || !bytes.Equal(got.Bytes(), archive(symlink("b"))) {
		t.Errorf("got %q, %v", got.Bytes(), err)
	}
}
