package cache

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// vouch takes everything for a domain.
func vouch(domain string) func(*nix.PathInfo) (*nix.PathInfo, Grant, error) {
	return func(info *nix.PathInfo) (*nix.PathInfo, Grant, error) {
		return info, Grant{Domain: domain, Provenance: DomainVouched}, nil
	}
}

func exportTo(t testing.TB, c *Cache, domain, dir string, objects ...object) Exported {
	t.Helper()
	sink, err := NewFolderSink(dir)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := c.Export(t.Context(), domain, pathsOf(objects...), sink, func(Exported) {})
	if err := errors.Join(err, sink.Close()); err != nil {
		t.Fatal(err)
	}
	return sum
}

func importFrom(t testing.TB, c *Cache, dir string, judge func(*nix.PathInfo) (*nix.PathInfo, Grant, error)) (Imported, *FolderSource) {
	t.Helper()
	source, err := NewFolderSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := c.Import(t.Context(), source, judge, func(Imported) {})
	if err := errors.Join(err, source.Close()); err != nil {
		t.Fatal(err)
	}
	return sum, source
}

// Guards against an export that an import does not understand, that leaves out what
// is referred to, or that shows what another domain has.
func TestWhatIsExportedCanBeImported(t *testing.T) {
	from := openCache(t, Options{Dir: newDir(t)})
	lib := obj("lib", "lib")
	tool := obj("tool", "tool", lib.info.Path, pathNamed("tool"))
	source, foreign, loose := sourceObj("s", "s"), obj("foreign", "f"), obj("loose", "l")
	for _, o := range []object{lib, tool, source, loose} {
		o.receive(t, from, in("team"))
	}
	foreign.receive(t, from, in("others"))
	dir := filepath.Join(t.TempDir(), "new")
	if sum := exportTo(t, from, "team", dir, tool, source); sum.Paths != 3 || len(sum.Refused) != 0 {
		t.Errorf("a closure: %+v", sum)
	}
	wantFiles(t, dir, narinfoSuffix, 3)
	wantFiles(t, dir, "", 7)
	if sum := exportTo(t, from, "team", dir, foreign); sum.Paths != 0 || len(sum.Refused) != 1 {
		t.Errorf("another's path: %+v", sum)
	}
	if sum := exportTo(t, from, "team", dir); sum.Paths != 4 || sum.Of != 4 {
		t.Errorf("all of the domain: %+v", sum)
	}
	to := openCache(t, Options{Dir: newDir(t)})
	sum, _ := importFrom(t, to, dir, vouch("home"))
	if sum.Added != 4 || sum.Left != 0 {
		t.Errorf("imported: %+v", sum)
	}
	for _, o := range []object{lib, tool, source, loose} {
		o.holds(t, to, "home")
	}
	wantProvenance(t, to, "home", lib.info.Path, DomainVouched)
	wantProvenance(t, to, "home", source.info.Path, ContentAddressed)
	if sum, _ := importFrom(t, to, dir, vouch("home")); sum.Already != 4 {
		t.Errorf("again: %+v", sum)
	}
}

// Guards against an import that believes a folder: wrong bytes, names, lengths and
// references, NARs elsewhere or compressed; and against one bad path that ends
// the whole.
func TestImportVerifiesLikeAnUpload(t *testing.T) {
	from := openCache(t, Options{Dir: newDir(t)})
	good, rotten, orphan, source := obj("good", "good"), obj("rotten", "rotten"), obj("orphan", "orphan"), sourceObj("s", "s")
	needy := obj("needy", "needy", orphan.info.Path)
	for _, o := range []object{good, rotten, orphan, source, needy} {
		o.receive(t, from, in("team"))
	}
	dir := t.TempDir()
	exportTo(t, from, "team", dir)
	file := func(o object) string { return filepath.Join(dir, o.info.Path.HashPart()+narinfoSuffix) }
	edit := func(o object, from, to string) {
		text, err := os.ReadFile(file(o))
		if err != nil || !strings.Contains(string(text), from) {
			t.Fatalf("%v in %s", err, text)
		}
		if err := os.WriteFile(file(o), []byte(strings.ReplaceAll(string(text), from, to)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rot(t, dir, rotten, 100)
	if err := os.Remove(file(orphan)); err != nil {
		t.Fatal(err)
	}
	edit(source, "CA: fixed:r:sha256:", "CA: fixed:sha256:") // no content address of these bytes
	for name, change := range map[string][2]string{
		"packed": {"Compression: none", "Compression: xz"}, "away": {"URL: nar/", "URL: ../nar/"},
		"remote": {"URL: nar/", "URL: https://example.org/nar/"}, "short": {"NarSize: ", "NarSize: 1"},
	} {
		o := obj(name, name)
		o.receive(t, from, in("team"))
		exportTo(t, from, "team", dir, o)
		edit(o, change[0], change[1])
	}
	misnamed, err := os.ReadFile(file(good))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, strings.Repeat("0", 32)+narinfoSuffix), misnamed, 0o600); err != nil {
		t.Fatal(err)
	}
	to := openCache(t, Options{Dir: newDir(t)})
	sum, folder := importFrom(t, to, dir, vouch("home"))
	if sum.Added != 1 || sum.Left != 3 || len(folder.Refused) != 5 {
		t.Errorf("imported: %+v, not read: %+v", sum, folder.Refused)
	}
	good.holds(t, to, "home")
	for _, o := range []object{rotten, orphan, needy, source} {
		absent(t, to, "home", o.info.Path)
	}
	if _, err := NewFolderSource(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a Nix binary cache") {
		t.Errorf("some folder: %v", err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, cacheInfoName), []byte("StoreDir: /gnu/store\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFolderSource(other); err == nil || !strings.Contains(err.Error(), "/gnu/store") {
		t.Errorf("another store: %v", err)
	}
}

// Guards against a damaged NAR that is exported as if it was right.
func TestExportLeavesOutWhatIsDamaged(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	lib, loose := obj("lib", "lib"), obj("loose", "loose")
	tool := obj("tool", "tool", lib.info.Path)
	for _, o := range []object{lib, tool, loose} {
		o.receive(t, c, in("team"))
	}
	flushed(t, c)
	lib.holds(t, c, "team") // checked, and then it rots
	rot(t, dir, lib, 100)
	to := t.TempDir()
	sum := exportTo(t, c, "team", to)
	if sum.Paths != 1 || len(sum.Refused) != 2 {
		t.Errorf("%+v", sum)
	}
	wantFiles(t, to, "", 3)
	absent(t, c, "team", lib.info.Path)
}

// Guards against a stream between two processes that loses or mixes up paths.
func TestTarStreamCarriesACache(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	all := filler(t, c, "p", 10)
	var stream bytes.Buffer
	out := TarSink{tar.NewWriter(&stream)}
	if _, err := c.Export(t.Context(), "team", nil, out, func(Exported) {}); err != nil {
		t.Fatal(err)
	}
	out.Close()
	dir := t.TempDir()
	sink, err := NewFolderSink(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Unpack(&stream, sink), sink.Close()); err != nil {
		t.Fatal(err)
	}
	folder, err := NewFolderSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	stream.Reset()
	out = TarSink{tar.NewWriter(&stream)}
	packed := 0
	if err := Pack(folder, out, func(*nix.NarInfo) { packed++ }); err != nil || packed != 10 {
		t.Fatalf("%d packed, %v", packed, err)
	}
	out.Close()
	whole := stream.Bytes()
	sum, err := c.Import(t.Context(), NewTarSource(bytes.NewReader(whole)), vouch("home"), func(Imported) {})
	if err != nil || sum.Added != 10 {
		t.Errorf("%+v, %v", sum, err)
	}
	for _, o := range all {
		o.holds(t, c, "home")
	}
	for _, cut := range []int{100, 512, 600, 1300, 1600, len(whole) / 2} {
		if _, err := c.Import(t.Context(), NewTarSource(bytes.NewReader(whole[:cut])), vouch("cut"), func(Imported) {}); err == nil && cut%512 != 0 {
			t.Errorf("a stream cut at %d ends well", cut)
		}
	}
}

// Guards against names in a stream that lead out of the folder.
func TestUnpackWritesOnlyFilesOfACache(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "in")
	for _, name := range []string{"../evil", "/evil", "nar/../../evil", "evil", ".part", "nar/aa/evil.nar", strings.Repeat("a", 32) + ".narinfo/x"} {
		var stream bytes.Buffer
		out := TarSink{tar.NewWriter(&stream)}
		if err := out.Put(name, 1, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		out.Close()
		sink, err := NewFolderSink(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := Unpack(&stream, sink); err == nil {
			t.Errorf("%q is written", name)
		}
		sink.Close()
	}
	wantFiles(t, base, "", 0)
}

// Guards against an order of import in which a path comes before what it needs, or
// which never ends.
func TestReferencesComeFirst(t *testing.T) {
	order := referencesFirst(map[string][]string{
		"a": {"b", "c", "elsewhere", "a"}, "b": {"c"}, "c": {"c"}, "x": {"y"}, "y": {"x"}, "z": {"a", "x"},
	})
	if got := strings.Join(order, ""); got != "cbayxz" {
		t.Errorf("order %s", got)
	}
}

// Guards against a stream that makes the import panic, or take what it did not
// verify.
func FuzzImportStream(f *testing.F) {
	o := obj("o", "o")
	var stream bytes.Buffer
	out := TarSink{tar.NewWriter(&stream)}
	info := &nix.NarInfo{PathInfo: *o.info, URL: narName(o.info.NarHash), Compression: "none"}
	text := info.String()
	if err := errors.Join(
		out.Put(o.info.Path.HashPart()+narinfoSuffix, int64(len(text)), strings.NewReader(text)),
		out.Put(narName(o.info.NarHash), int64(len(o.nar)), bytes.NewReader(o.nar)), out.Close()); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes())
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewTarSource(bytes.NewReader(b))
		for range 100 {
			info, nar, err := s.Next()
			if err != nil {
				return
			}
			if n, err := io.Copy(io.Discard, nar); err == nil && uint64(n) != info.NarSize {
				t.Errorf("%d of %d bytes", n, info.NarSize)
			}
		}
	})
}
