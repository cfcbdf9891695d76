package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"nixbastion/internal/nix"
)

// Guards against bytes that are published, or spool files that stay, though they
// are not what was declared; and against errors that say nothing.
func TestWrongContentIsRefusedWithASentence(t *testing.T) {
	good := obj("good", strings.Repeat("content ", 1000))
	with := func(change func(*object)) object {
		o := object{info: good.info.Clone(), nar: slices.Clone(good.nar)}
		change(&o)
		return o
	}
	cases := map[string]struct {
		object
		says string
	}{
		"wrong hash":        {with(func(o *object) { o.info.NarHash = nix.HashBytes(nix.SHA256, nil) }), "hash mismatch importing path"},
		"one flipped bit":   {with(func(o *object) { o.nar[500] ^= 1 }), "hash mismatch importing path"},
		"size too small":    {with(func(o *object) { o.info.NarSize -= 8 }), "size mismatch importing path"},
		"size too large":    {with(func(o *object) { o.info.NarSize += 8 }), "size mismatch importing path"},
		"trailing bytes":    {with(func(o *object) { o.nar = append(o.nar, 0); o.info.NarSize++ }), "size mismatch importing path"},
		"short stream":      {with(func(o *object) { o.nar = o.nar[:len(o.nar)/2] }), "bad archive: cut"},
		"no stream":         {with(func(o *object) { o.nar = nil }), "bad archive: cut"},
		"bad magic":         {with(func(o *object) { o.nar[8] = 'X' }), "bad archive"},
		"bad padding":       {with(func(o *object) { o.nar[len(o.nar)-1] = 1 }), "bad archive"},
		"size of zero":      {with(func(o *object) { o.info.NarSize = 0 }), "0 bytes"},
		"size without end":  {with(func(o *object) { o.info.NarSize = 1 << 63 }), "does not fit"},
		"no path":           {with(func(o *object) { o.info.Path = nix.StorePath{} }), "without a path"},
		"no hash":           {with(func(o *object) { o.info.NarHash = nix.Hash{} }), "no SHA-256"},
		"other algorithm":   {with(func(o *object) { o.info.NarHash = nix.HashBytes(nix.SHA512, o.nar) }), "no SHA-256"},
		"missing reference": {with(func(o *object) { o.info.References = []nix.StorePath{pathNamed("absent")} }), "which is not valid"},
		"too many references": {with(func(o *object) {
			for _, name := range names("ref", maxReferences+1) {
				o.info.References = append(o.info.References, pathNamed(name))
			}
		}), "references, more than"},
		"too many signatures": {with(func(o *object) { o.info.Sigs = slices.Repeat([]nix.Signature{mustSig(signatureText)}, maxSigs+1) }), "signatures, more than"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			c := openCache(t, Options{Dir: dir})
			_, err := c.Receive(t.Context(), tc.info, bytes.NewReader(tc.nar), in("team"))
			refusedWith(t, err, tc.says)
			nothingHappened(t, c, dir)
		})
	}
}

// nothingHappened checks that no path, file or space was taken.
func nothingHappened(t *testing.T, c *Cache, dir string) {
	t.Helper()
	flushed(t, c)
	absent(t, c, "team", pathNamed("good"))
	wantFiles(t, dir, narSuffix, 0)
	wantFiles(t, dir, narinfoSuffix, 0)
	wantFiles(t, c.root.Name()+"/"+c.scratch.dir, "", 0)
	if s := c.Stats(); s.Bytes != 0 || s.Paths != 0 || s.Arriving != 0 || s.Added != 0 {
		t.Errorf("stats: %+v", s)
	}
	if len(c.pins) != 0 {
		t.Errorf("pins stay: %v", c.pins)
	}
}

// Guards against a claimed content address that is believed: such a path counts
// as signed on every client.
func TestClaimedContentAddressMustFit(t *testing.T) {
	sum := func(text string) nix.Hash { return nix.HashBytes(nix.SHA256, []byte(text)) }
	addressed := func(name string, ca nix.ContentAddress, content string) object {
		o := obj(name, content)
		o.info.CA = ca
		var err error
		if o.info.Path, err = nix.ContentAddressedPath(name, ca, nil, false); err != nil {
			t.Fatal(err)
		}
		return o
	}
	otherPath := sourceObj("x", "x")
	otherPath.info.Path = pathNamed("x")
	extraReference := sourceObj("x", "x")
	extraReference.info.References = []nix.StorePath{extraReference.info.Path}
	for name, tc := range map[string]struct {
		object
		says string
	}{
		"path of other content":   {otherPath, "claims to be content-addressed but isn't"},
		"reference not addressed": {extraReference, "claims to be content-addressed but isn't"},
		"recursive":               {addressed("x", nix.ContentAddress{Method: nix.NAR, Hash: sum("other")}, "x"), "ca hash mismatch"},
		"flat":                    {addressed("x", nix.ContentAddress{Method: nix.Flat, Hash: sum("other")}, "x"), "ca hash mismatch"},
		"text":                    {addressed("x", nix.ContentAddress{Method: nix.Text, Hash: sum("other")}, "x"), "ca hash mismatch"},
		"git, which we cannot":    {addressed("x", nix.ContentAddress{Method: nix.Git, Hash: sum("x")}, "x"), "git hashes are not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			c := openCache(t, Options{Dir: dir})
			_, err := c.Receive(t.Context(), tc.info, bytes.NewReader(tc.nar), in("team"))
			refusedWith(t, err, tc.says)
			absent(t, c, "team", tc.info.Path)
			nothingHappened(t, c, dir)
		})
	}
	c := openCache(t, Options{Dir: newDir(t)})
	for _, o := range []object{
		sourceObj("recursive", "x"),
		addressed("flat", nix.ContentAddress{Method: nix.Flat, Hash: sum("x")}, "x"),
		addressed("text", nix.ContentAddress{Method: nix.Text, Hash: sum("x")}, "x"),
	} {
		o.mustBe(t, Added, o.receive(t, c, in("team")))
		wantProvenance(t, c, "team", o.info.Path, ContentAddressed)
	}
}

// Guards against an upload that takes bytes of what comes behind it in the same
// protocol stream.
func TestReceiveReadsExactlyTheNAR(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	a, b := obj("a", "first"), obj("b", strings.Repeat("second", 100_000))
	stream := iotest.HalfReader(bytes.NewReader(slices.Concat(a.nar, b.nar, []byte("next message"))))
	for _, o := range []object{a, b} {
		if _, err := c.Receive(t.Context(), o.info, stream, in("team")); err != nil {
			t.Fatal(err)
		}
		o.holds(t, c, "team")
	}
	if rest, _ := io.ReadAll(stream); string(rest) != "next message" {
		t.Errorf("rest of the stream: %q", rest)
	}
}

// Guards against a broken connection that is reported to the user as a bad
// archive, and against its traces.
func TestBrokenConnectionIsNoBadArchive(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o, broken := obj("good", "content"), errors.New("connection reset")
	stream := io.MultiReader(bytes.NewReader(o.nar[:50]), iotest.ErrReader(broken))
	_, err := c.Receive(t.Context(), o.info, stream, in("team"))
	if _, isUser := errors.AsType[*nix.UserError](err); !errors.Is(err, broken) || isUser {
		t.Errorf("got %v", err)
	}
	nothingHappened(t, c, dir)
}

// Guards against an upload that goes on after its session was ended.
func TestReceiveEndsWithItsContext(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("client is gone")
	o := obj("good", strings.Repeat("x", 1<<20))
	stream := bytes.NewReader(o.nar)
	_, err := c.Receive(ctx, o.info, readerFunc(func(p []byte) (int, error) {
		cancel(gone)
		return stream.Read(p[:min(len(p), 1000)])
	}), in("team"))
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	nothingHappened(t, c, dir)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Guards against a path whose name does not come from the bytes that were read,
// and against leftovers when nobody can name them.
func TestUnnamedContentIsNamedByItsBytes(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := sourceObj("tree", strings.Repeat("tree", growth/4)) // more than a step of growth
	info, _, err := c.ReceiveUnnamed(t.Context(), bytes.NewReader(o.nar), in("team"), func(narHash nix.Hash, narSize uint64) (*nix.PathInfo, error) {
		if narHash != o.info.NarHash || narSize != o.info.NarSize {
			t.Errorf("asked to name %v of %d bytes", narHash, narSize)
		}
		return &nix.PathInfo{Path: o.info.Path, CA: o.info.CA}, nil
	})
	if err != nil || info.Path != o.info.Path || info.NarHash != o.info.NarHash || info.NarSize != o.info.NarSize {
		t.Fatalf("got %+v, %v", info, err)
	}
	o.holds(t, c, "team")
	wantProvenance(t, c, "team", o.info.Path, ContentAddressed)
	absent(t, c, "others", o.info.Path)
	flushed(t, c)
	if s := c.Stats(); s.Bytes != cost(o.info.NarSize) {
		t.Errorf("takes %d bytes, want %d", s.Bytes, cost(o.info.NarSize))
	}

	unnamed := errors.New("no name")
	noName := func(nix.Hash, uint64) (*nix.PathInfo, error) { return nil, unnamed }
	if _, _, err := c.ReceiveUnnamed(t.Context(), bytes.NewReader(o.nar), in("team"), noName); !errors.Is(err, unnamed) {
		t.Errorf("got %v", err)
	}
	_, _, err = c.ReceiveUnnamed(t.Context(), bytes.NewReader(o.nar[:100]), in("team"), noName)
	refusedWith(t, err, "bad archive: cut")
	_, _, err = c.ReceiveUnnamed(t.Context(), bytes.NewReader(o.nar), in("team"), func(nix.Hash, uint64) (*nix.PathInfo, error) {
		return &nix.PathInfo{Path: pathNamed("good"), References: []nix.StorePath{pathNamed("absent")}}, nil
	})
	refusedWith(t, err, "which is not valid")
	wantFiles(t, dir+"/"+c.scratch.dir, "", 0)
	if s := c.Stats(); s.Bytes != cost(o.info.NarSize) || len(c.pins) != 0 {
		t.Errorf("space or pins stay: %+v, %v", s, c.pins)
	}
}

// Guards against temporary files that outlive their request or are not counted.
func TestTempFileTakesSpaceAndGoes(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir, Size: 16 << 20})
	f, err := c.TempFile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("x"), 5<<20)
	if n, err := io.Copy(f, bytes.NewReader(content)); err != nil || n != int64(len(content)) {
		t.Fatalf("copied %d bytes: %v", n, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d other bytes (%v)", len(got), err)
	}
	if s := c.Stats(); s.Bytes < int64(len(content)) {
		t.Errorf("counts as %d bytes", s.Bytes)
	}
	_, err = io.Copy(f, bytes.NewReader(bytes.Repeat(content, 4)))
	refusedWith(t, err, "do not fit")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if s := c.Stats(); s.Bytes != 0 {
		t.Errorf("%d bytes stay", s.Bytes)
	}
	wantFiles(t, dir+"/"+c.scratch.dir, "", 0)
}
