package nar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	gonar "github.com/nix-community/go-nix/pkg/nar"
	"pgregory.net/rapid"
)

// Two other readers of archives: a plain one that is written here as the grammar
// stands, and go-nix's, which is more lenient.

var errReference = errors.New("not in the grammar")

// reference reads an archive out of memory, token by token. It panics with
// errReference or io.ErrUnexpectedEOF.
type reference struct{ rest []byte }

// referenceSize returns the length of the archive that data begins with.
func referenceSize(data []byte) (size int, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = r.(error)
		}
	}()
	r := &reference{rest: data}
	r.want("nix-archive-1")
	r.node(1)
	return len(data) - len(r.rest), nil
}

func (r *reference) bytes(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		panic(io.ErrUnexpectedEOF)
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reference) string(limit uint64) string {
	n := binary.LittleEndian.Uint64(r.bytes(8))
	if n > limit {
		panic(errReference)
	}
	s := r.bytes(n)
	for _, c := range r.bytes((8 - n%8) % 8) {
		if c != 0 {
			panic(errReference)
		}
	}
	return string(s)
}

func (r *reference) want(token string) {
	if r.string(32) != token {
		panic(errReference)
	}
}

func (r *reference) node(depth int) {
	if depth > 64 {
		panic(errReference)
	}
	r.want("(")
	r.want("type")
	switch r.string(32) {
	case "regular":
		token := r.string(32)
		if token == "executable" {
			r.want("")
			token = r.string(32)
		}
		if token != "contents" {
			panic(errReference)
		}
		r.string(maxContents)
		r.want(")")
	case "symlink":
		r.want("target")
		if target := r.string(4095); target == "" || strings.Contains(target, "\x00") {
			panic(errReference)
		}
		r.want(")")
	case "directory":
		r.entries(depth)
	default:
		panic(errReference)
	}
}

func (r *reference) entries(depth int) {
	for last := ""; ; {
		switch r.string(32) {
		case ")":
			return
		case "entry":
		default:
			panic(errReference)
		}
		r.want("(")
		r.want("name")
		name := r.string(255)
		if name <= last || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			panic(errReference)
		}
		last = name
		r.want("node")
		r.node(depth + 1)
		r.want(")")
	}
}

// goNixReads returns the nodes that go-nix sees, or its error.
func goNixReads(data []byte) (nodes []Node, err error) {
	r, err := gonar.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nodes, nil
		}
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return nil, err
		}
		nodes = append(nodes, Node{
			Path: strings.TrimPrefix(h.Path, "/"), Kind: kindOf[h.Type], Executable: h.Executable,
			Size: uint64(h.Size), Target: h.LinkTarget,
		})
	}
}

var kindOf = map[gonar.NodeType]Kind{gonar.TypeRegular: Regular, gonar.TypeSymlink: Symlink, gonar.TypeDirectory: Directory}

func nodesOf(data []byte) (nodes []Node, size int, err error) {
	r := NewVisitingReader(bytes.NewReader(data), Visitor{Node: func(n Node) { nodes = append(nodes, n) }})
	n, err := io.Copy(io.Discard, r)
	return nodes, int(n), err
}

// compareReaders checks that the validator accepts what the reference accepts,
// to the same byte, and sees in it what go-nix sees.
func compareReaders(t interface{ Fatalf(string, ...any) }, data []byte) {
	nodes, size, err := nodesOf(data)
	wantSize, wantErr := referenceSize(data)
	switch {
	case (err == nil) != (wantErr == nil):
		t.Fatalf("%q: got %v, reference %v", data, err, wantErr)
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, new(*SyntaxError)):
		t.Fatalf("%q: got %v", data, err)
	case err != nil:
		return
	case size != wantSize:
		t.Fatalf("%q: ends at %d, reference at %d", data, size, wantSize)
	}
	for _, n := range nodes {
		if len(n.Path) > MaxTarget-1 { // go-nix bounds the whole path
			return
		}
	}
	theirs, err := goNixReads(data[:size])
	if err != nil || !slices.Equal(nodes, theirs) {
		t.Fatalf("%q: got %+v, go-nix %+v, %v", data, nodes, theirs, err)
	}
}

// Guards against an archive that passes here and is another one, or none, for
// whoever unpacks it. The samples with one byte changed, or eight replaced by
// another number, are tried too.
func TestValidatorAgreesWithOtherReaders(t *testing.T) {
	for _, data := range samples() {
		compareReaders(t, data)
		compareReaders(t, append(bytes.Clone(data), "behind"...))
		if len(data) > 2000 {
			continue // the long ones have nothing new in them
		}
		for at := range data {
			for _, flip := range []byte{1, 0x80} {
				changed := bytes.Clone(data)
				changed[at] ^= flip
				compareReaders(t, changed)
			}
		}
	}
}

// Any bytes are accepted or refused as the reference does.
func FuzzValidator(f *testing.F) {
	for _, data := range samples() {
		if len(data) < 2000 {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) { compareReaders(t, data) })
}

// treeNode is a drawn tree.
type treeNode struct {
	Node
	contents string
	entries  []treeNode
}

func drawNode(t *rapid.T, path string, depth int) treeNode {
	n := treeNode{Node: Node{Path: path, Kind: rapid.SampledFrom([]Kind{Regular, Symlink, Directory}).Draw(t, "kind")}}
	switch n.Kind {
	case Regular:
		n.contents = string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "contents"))
		n.Size = uint64(len(n.contents))
		n.Executable = rapid.Bool().Draw(t, "executable")
	case Symlink:
		n.Target = rapid.StringMatching(`[^\x00]{1,20}`).Draw(t, "target")
	case Directory:
		if depth == 0 {
			return n
		}
		// go-nix cannot write names that begin with two dots.
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-c.\-~]{1,6}`).Filter(func(s string) bool {
			return s != "." && !strings.HasPrefix(s, "..")
		}), 0, 4, rapid.ID).Draw(t, "names")
		slices.Sort(names)
		for _, name := range names {
			n.entries = append(n.entries, drawNode(t, strings.TrimPrefix(path+"/"+name, "/"), depth-1))
		}
	}
	return n
}

func (n *treeNode) flat(list []Node) []Node {
	list = append(list, n.Node)
	for i := range n.entries {
		list = n.entries[i].flat(list)
	}
	return list
}

func (n *treeNode) tokens() []string {
	switch n.Kind {
	case Regular:
		if n.Executable {
			return []string{"(", "type", "regular", "executable", "", "contents", n.contents, ")"}
		}
		return file(n.contents)
	case Symlink:
		return symlink(n.Target)
	}
	var entries [][]string
	for i := range n.entries {
		e := &n.entries[i]
		entries = append(entries, entry(e.Path[strings.LastIndexByte(e.Path, '/')+1:], e.tokens()))
	}
	return directory(entries...)
}

// goNixWrites packs a tree with go-nix.
func (n *treeNode) goNixWrites(t *rapid.T) []byte {
	var b bytes.Buffer
	w, err := gonar.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	n.goNixWrite(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (n *treeNode) goNixWrite(t *rapid.T, w *gonar.Writer) {
	h := &gonar.Header{Path: "/" + n.Path, LinkTarget: n.Target, Size: int64(n.Size), Executable: n.Executable}
	for theirs, ours := range kindOf {
		if ours == n.Kind {
			h.Type = theirs
		}
	}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if n.Kind == Regular {
		if _, err := io.WriteString(w, n.contents); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n.entries {
		n.entries[i].goNixWrite(t, w)
	}
}

// Guards against trees that are written or read in another way than go-nix does.
func TestTreesAgreeWithGoNix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tree := drawNode(t, "", 3)
		data := tree.goNixWrites(t)
		if want := archive(tree.tokens()); !bytes.Equal(data, want) {
			t.Fatalf("go-nix writes %q, not %q", data, want)
		}
		nodes, size, err := nodesOf(append(data, "behind"...))
		if err != nil || size != len(data) || !slices.Equal(nodes, tree.flat(nil)) {
			t.Fatalf("got %+v, %d of %d bytes, %v", nodes, size, len(data), err)
		}
		compareReaders(t, data)
	})
}
