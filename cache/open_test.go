package cache

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Guards against two processes that each believe to be the only keeper of a
// directory.
func TestADirectoryHasOneCache(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("out", "content")
	o.receive(t, c, in("team"))
	second, err := Open(t.Context(), Options{Dir: dir})
	if err == nil {
		second.Close()
		t.Fatal("a second cache was opened")
	}
	if !strings.Contains(err.Error(), "another process uses the store") {
		t.Errorf("got %v", err)
	}
	o.holds(t, c, "team") // the first is none the worse
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir})
	o.holds(t, c, "team")
}

// Guards against temporary files of dead processes that fill the disk, and
// against a wipe of those that live.
func TestOpenWipesWhatDeadProcessesLeft(t *testing.T) {
	dir := newDir(t)
	tmp := filepath.Join(dir, "tmp")
	for _, name := range []string{"111/1", "222/2", "222.lock", "333.lock", "444-1/spool"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tmp, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tmp, name), []byte("left"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	alive, err := tryLock(root, "tmp/222.lock")
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()

	c := openCache(t, Options{Dir: dir})
	var got []string
	entries, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := filepath.Join("tmp", e.Name()); name != c.scratch.dir && name != c.scratch.dir+lockSuffix {
			got = append(got, e.Name())
		}
	}
	if strings.Join(got, " ") != "222 222.lock" {
		t.Errorf("left: %q", got)
	}
	closeCache(t, c)
	if _, err := os.Lstat(filepath.Join(tmp, "222", "2")); err != nil {
		t.Errorf("the file of a live process: %v", err)
	}
	wantFiles(t, tmp, "", 2)
}

// Guards against paths that only memory knew: a closed cache has written all
// that it acknowledged.
func TestCloseMakesDurableWhatWasAcknowledged(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	var all []object
	for _, name := range names("p", 3*groupSize) {
		o := obj(name, name)
		o.receive(t, c, in("team"))
		all = append(all, o)
	}
	scanned(t, c) // of a new directory, which counts as incomplete until then
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir})
	for _, o := range all {
		o.holds(t, c, "team")
	}
	if c.index.incomplete {
		t.Error("a closed index counts as incomplete")
	}
}

// Guards against a start that reads the whole index, which takes seconds with a
// million paths; and against an index that is believed although it was written
// to since, was put back from elsewhere, or has no end.
func TestOnlyAnIndexClosedInOrderIsNotReadAgain(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	filler(t, c, "p", 3)
	root := c.root
	if isSealed(root) {
		t.Error("an open index is sealed")
	}
	scanned(t, c) // of a new directory, which counts as incomplete until then
	closeCache(t, c)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if !isSealed(root) {
		t.Error("an index that was closed is not sealed")
	}
	name := filepath.Join(dir, indexName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+".copy", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".copy", name); err != nil {
		t.Fatal(err)
	}
	if isSealed(root) {
		t.Error("a copy that was put back is sealed")
	}
	c = openCache(t, Options{Dir: dir})
	scanned(t, c)
	closeCache(t, c)
	if !isSealed(root) {
		t.Error("not sealed again")
	}
	c = openCache(t, Options{Dir: dir})
	c.lostTrack() // as a killed process leaves it
	closeCache(t, c)
	if isSealed(root) {
		t.Error("an index without an end is sealed")
	}
}
