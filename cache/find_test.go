package cache

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

// wantFound checks what a domain is answered to questions about all paths, and
// about the hash part of each.
func wantFound(t *testing.T, c *Cache, domain string, want ...object) {
	t.Helper()
	got, err := c.QueryAllValidPaths(t.Context(), domain)
	if err != nil || !slices.Equal(got, nix.SortPaths(pathsOf(want...))) {
		t.Errorf("all paths of %q: got %v, %v, want %v", domain, got, err, pathsOf(want...))
	}
	for _, p := range pathsOf(want...) {
		if got, err := c.QueryPathFromHashPart(domain, p.HashPart()); got != p || err != nil {
			t.Errorf("hash part of %s in %q: got %s, %v", p, domain, got, err)
		}
	}
}

func wantReferrers(t *testing.T, c *Cache, domain string, of object, want ...object) {
	t.Helper()
	got, err := c.QueryReferrers(t.Context(), domain, of.info.Path)
	if err != nil || !slices.Equal(got, nix.SortPaths(pathsOf(want...))) {
		t.Errorf("referrers of %s in %q: got %v, %v, want %v", of.info.Path, domain, got, err, pathsOf(want...))
	}
}

// Guards against answers that hold only as long as the proxy runs, and against
// those that tell a domain what another one has.
func TestWhatADomainFindsIsItsOwn(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	lib := obj("lib", "lib")
	tool := obj("tool", "tool", lib.info.Path, pathNamed("tool")) // refers to itself
	other := obj("other", "other", lib.info.Path)
	arriving := obj("arriving", "arriving", lib.info.Path)
	for _, domain := range []string{"one", "two"} {
		lib.receive(t, c, in(domain))
	}
	tool.receive(t, c, in("one"))
	other.receive(t, c, in("two"))
	a := announced(t, c, arriving, in("two"))
	check := func(more ...object) {
		t.Helper()
		wantFound(t, c, "one", lib, tool)
		wantFound(t, c, "two", append(more, lib, other)...)
		wantFound(t, c, "three")
		wantReferrers(t, c, "one", lib, tool)
		wantReferrers(t, c, "one", tool, tool)
		wantReferrers(t, c, "two", lib, append(more, other)...)
		wantReferrers(t, c, "two", tool)
		wantReferrers(t, c, "three", lib)
	}
	check(arriving)
	a.Abort(errors.New("lost"))
	check()
	flushed(t, c)
	check()
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir})
	check()
	closeCache(t, c)
	if err := os.Remove(filepath.Join(dir, indexName)); err != nil {
		t.Fatal(err)
	}
	c = openCache(t, Options{Dir: dir})
	check()
	for _, hashPart := range []string{"", strings.Repeat("0", hashPartLen), "../../../../../../../etc/passwd"} {
		if got, err := c.QueryPathFromHashPart("one", hashPart); !errors.Is(err, nix.ErrNotFound) {
			t.Errorf("hash part %q: %s, %v", hashPart, got, err)
		}
	}
}

// Guards against paths that are found after they went, and against a search that
// keeps everything from eviction because it has seen it.
func TestFindingIsNoUse(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 20 * unit, Now: ticks()})
	old := filler(t, c, "old", 18)
	wantFound(t, c, "team", old...)
	before := len(c.touched)
	if _, err := c.QueryAllValidPaths(t.Context(), "team"); err != nil || len(c.touched) != before {
		t.Errorf("a list touches %d paths, %v", len(c.touched)-before, err)
	}
	filler(t, c, "young", 1)
	roomy(t, c)
	left := len(validNames(c, old)) + 1
	got, err := c.QueryAllValidPaths(t.Context(), "team")
	if err != nil || len(got) != left {
		t.Errorf("found %d paths, %v; %d are left", len(got), err, left)
	}
}

// Guards against a list that ends at the border of one step through the index.
func TestFindingGoesThroughAllRows(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	lib := obj("lib", "lib")
	lib.receive(t, c, in("team"))
	all := []object{lib}
	for _, name := range names("p", 2*findStep+1) {
		o := obj(name, "the same", lib.info.Path)
		o.receive(t, c, in("team"))
		all = append(all, o)
	}
	flushed(t, c)
	if got, err := c.QueryAllValidPaths(t.Context(), "team"); err != nil || len(got) != len(all) {
		t.Errorf("found %d of %d paths, %v", len(got), len(all), err)
	}
	wantReferrers(t, c, "team", lib, all[1:]...)
}

// Guards against half an answer where the index lacks what is published.
func TestFindingWithoutAWholeIndexIsRefused(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	o.receive(t, c, in("team"))
	flushed(t, c)
	c.lostTrack()
	_, err := c.QueryAllValidPaths(t.Context(), "team")
	refusedWith(t, err, "index is incomplete")
	_, err = c.QueryReferrers(t.Context(), "team", o.info.Path)
	refusedWith(t, err, "index is incomplete")
	if got, err := c.QueryPathFromHashPart("team", o.info.Path.HashPart()); got != o.info.Path || err != nil {
		t.Errorf("hash part: %s, %v", got, err)
	}
}
