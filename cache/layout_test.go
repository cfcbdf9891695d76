package cache

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nix-community/go-nix/pkg/narinfo"
	"github.com/nix-community/go-nix/pkg/nixhash"

	"nixbastion/internal/nix"
)

const signatureText = "key-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="

func mustSig(text string) nix.Signature {
	sig, err := nix.ParseSignature(text)
	if err != nil {
		panic(err)
	}
	return sig
}

// foreignNarinfo reads a published narinfo with a parser that is not ours. It
// knows no keys beyond Nix's, which Nix itself skips.
func foreignNarinfo(t *testing.T, file string) *narinfo.NarInfo {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var known []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte("X-Nixbastion-")) {
			known = append(known, line...)
		}
	}
	info, err := narinfo.Parse(bytes.NewReader(known))
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(file), err, text)
	}
	if err := info.Check(); err != nil {
		t.Errorf("%s: %v", filepath.Base(file), err)
	}
	return info
}

// Guards against a layout that only we can read: whoever opens a domain's folder
// as a binary cache must find the path with all that is known of it.
func TestDomainIsAStandardBinaryCache(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	dep := obj("dep", "dep")
	o := obj("hello", "hello", dep.info.Path, pathNamed("hello"))
	o.info.Deriver = pathNamed("hello.drv")
	o.info.Sigs = []nix.Signature{mustSig(signatureText)}
	src := sourceObj("src", "source")
	for _, o := range []object{dep, o, src} {
		o.mustBe(t, Added, o.receive(t, c, in("team")))
	}
	flushed(t, c)

	team := filepath.Join(dir, "domain", "team")
	cacheInfo, err := os.ReadFile(filepath.Join(team, "nix-cache-info"))
	if err != nil || !strings.Contains(string(cacheInfo), "StoreDir: /nix/store\n") {
		t.Errorf("nix-cache-info: %q (%v)", cacheInfo, err)
	}
	info := foreignNarinfo(t, filepath.Join(team, o.info.Path.HashPart()+".narinfo"))
	want := []string{o.info.Path.String(), "none", o.info.NarHash.String(), o.info.NarHash.String(), o.info.Deriver.Base(), ""}
	got := []string{info.StorePath, info.Compression, info.NarHash.Format(nixhash.NixBase32, true), info.FileHash.Format(nixhash.NixBase32, true), info.Deriver, info.CA}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("narinfo: got %q, want %q", got[i], want[i])
		}
	}
	if info.NarSize != o.info.NarSize || info.FileSize != o.info.NarSize || len(info.References) != 2 || len(info.Signatures) != 1 {
		t.Errorf("narinfo: got sizes %d and %d, references %q, %d signatures", info.NarSize, info.FileSize, info.References, len(info.Signatures))
	}
	archive, err := os.ReadFile(filepath.Join(team, info.URL))
	if err != nil || !bytes.Equal(archive, o.nar) {
		t.Errorf("the NAR behind the URL %q differs (%v)", info.URL, err)
	}
	if ca := foreignNarinfo(t, filepath.Join(team, src.info.Path.HashPart()+".narinfo")).CA; ca != src.info.CA.String() {
		t.Errorf("CA: got %q, want %q", ca, src.info.CA)
	}
}

// Guards against a domain that nobody else can read because somebody looked at it
// too early: Nix makes the folder nar of a binary cache that it opens, where our
// link belongs.
func TestFolderInTheWayOfTheNARsIsPutAside(t *testing.T) {
	for name, file := range map[string]string{"empty": "", "filled": "x.nar"} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			inTheWay := filepath.Join(dir, "domain", "team", "nar")
			if err := os.MkdirAll(inTheWay, 0o755); err != nil {
				t.Fatal(err)
			}
			if file != "" {
				if err := os.WriteFile(filepath.Join(inTheWay, file), []byte("x"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			c := openCache(t, Options{Dir: dir})
			o := obj("hello", "hello")
			o.mustBe(t, Added, o.receive(t, c, in("team")))
			flushed(t, c)
			info := foreignNarinfo(t, filepath.Join(dir, "domain", "team", o.info.Path.HashPart()+".narinfo"))
			archive, err := os.ReadFile(filepath.Join(dir, "domain", "team", info.URL))
			if err != nil || !bytes.Equal(archive, o.nar) {
				t.Errorf("the NAR behind the URL %q differs (%v)", info.URL, err)
			}
		})
	}
}

// Guards against a path that leaks to everybody who may read the public folder:
// only a grant for everybody, of what is proven, puts it there.
func TestOnlyPublicPathsEnterThePublicLayout(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	private, claimed, proven := obj("private", "1"), obj("claimed", "2"), obj("proven", "3")
	source := sourceObj("source", "4")
	private.receive(t, c, Grant{Domain: "team", Provenance: Signed})
	claimed.receive(t, c, Grant{Domain: "team", Public: true, Provenance: Claimed})
	source.receive(t, c, in("team")) // content-addressed says nothing about secrecy
	proven.receive(t, c, Grant{Domain: "team", Public: true, Provenance: Signed})
	flushed(t, c)

	if public, _ := filepath.Glob(filepath.Join(dir, "*.narinfo")); len(public) != 1 || !strings.Contains(public[0], proven.info.Path.HashPart()) {
		t.Errorf("public narinfos: %q", public)
	}
	proven.holds(t, c, "others")
	for _, o := range []object{private, claimed, source} {
		absent(t, c, "others", o.info.Path)
		o.holds(t, c, "team")
	}
	wantProvenance(t, c, "team", source.info.Path, ContentAddressed)
}

// Guards against names that leave the cache's directory or hide in it.
func TestDomainNamesAreFileNames(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("x", "x")
	for _, domain := range []string{"", ".", "..", ".hidden", "a/b", "../x", "a\x00b", "a b", strings.Repeat("x", 65)} {
		if _, err := c.Receive(t.Context(), o.info, bytes.NewReader(o.nar), in(domain)); err == nil {
			t.Errorf("domain %q was accepted", domain)
		}
		if _, err := c.Announce(o.info, in(domain)); err == nil {
			t.Errorf("domain %q was announced to", domain)
		}
	}
}

// Guards against a signature whose key name breaks the line: the rest would be a
// key of the narinfo, and Nix and a rebuild would refuse the path for it.
func TestNothingAddsLinesToANarinfo(t *testing.T) {
	for _, key := range []string{"CA", "References", "StorePath", "NarSize"} {
		text := "name\n" + key + strings.TrimPrefix(signatureText, "key-1")
		if sig, err := nix.ParseSignature(text); err == nil {
			o := obj("x", "x")
			o.info.Sigs = []nix.Signature{sig}
			t.Errorf("a signature became\n%s", formatNarinfo(&record{info: o.info}))
		}
	}
}
