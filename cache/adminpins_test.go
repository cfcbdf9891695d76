package cache

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a pinned path that goes all the same: its closure, after a
// restart, and when the index had to be made anew.
func TestPinnedPathsStayWithTheirClosure(t *testing.T) {
	dir, now := newDir(t), ticks()
	o := Options{Dir: dir, Size: 20 * unit, Now: now}
	c := openCache(t, o)
	lib := obj("lib", "lib")
	tool := obj("tool", "tool", lib.info.Path)
	loose := obj("loose", "loose")
	for _, o := range []object{lib, tool, loose} {
		o.receive(t, c, in("team"))
	}
	flushed(t, c)
	if err := c.PinPaths("team", pathsOf(tool)); err != nil {
		t.Fatal(err)
	}
	if err := c.PinPaths("team", pathsOf(tool)); err != nil { // twice is once
		t.Fatal(err)
	}
	for round := range 3 {
		switch round {
		case 1:
			closeCache(t, c)
			c = openCache(t, o)
		case 2:
			closeCache(t, c)
			if err := os.Remove(filepath.Join(dir, indexName)); err != nil {
				t.Fatal(err)
			}
			c = openCache(t, o)
			scanned(t, c)
		}
		for i := range 10 {
			filler(t, c, fmt.Sprintf("fill%d-%d-", round, i), 5)
			roomy(t, c)
		}
		lib.holds(t, c, "team")
		tool.holds(t, c, "team")
		absent(t, c, "team", loose.info.Path)
		if got := c.PinnedPaths("team"); !slices.Equal(got, pathsOf(tool)) {
			t.Errorf("pinned: %v", got)
		}
	}
	if err := c.UnpinPaths("team", pathsOf(tool)); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		filler(t, c, fmt.Sprintf("last%d-", i), 5)
		roomy(t, c)
	}
	absent(t, c, "team", tool.info.Path)
	absent(t, c, "team", lib.info.Path)
	if len(c.pins) != 0 {
		t.Errorf("pins stay: %v", c.pins)
	}
}

// Guards against pins on what is not there, a typing error say, and against
// a pin that opens a path to another domain.
func TestOnlyWhatADomainHasIsPinned(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("o", "o")
	o.receive(t, c, in("team"))
	refusedWith(t, c.PinPaths("others", pathsOf(o)), "is not in domain others")
	refusedWith(t, c.PinPaths("team", []nix.StorePath{o.info.Path, pathNamed("none")}), "is not in domain team")
	refusedWith(t, c.UnpinPaths("team", pathsOf(o)), "is not pinned in domain team")
	if err := c.PinPaths("..", pathsOf(o)); err == nil {
		t.Error("a domain that is a folder above is taken")
	}
	if len(c.PinnedPaths("team"))+len(filesIn(t, dir, "-o")) != 0 || len(c.pins) != 0 {
		t.Errorf("something is pinned: %v", c.pins)
	}
	if err := c.PinPaths("team", pathsOf(o)); err != nil {
		t.Fatal(err)
	}
	absent(t, c, "others", o.info.Path)
	flushed(t, c)
	closeCache(t, c)
	if err := os.WriteFile(filepath.Join(dir, pinDir, "team", "not a path"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c = openCache(t, Options{Dir: dir})
	if got := c.PinnedPaths("team"); !slices.Equal(got, pathsOf(o)) {
		t.Errorf("pinned: %v", got)
	}
}
