package cache

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
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
// to since, was put back from elsewhere, or was open when the machine went down.
func TestOnlyAnIndexThatWasWrittenToIsReadAgain(t *testing.T) {
	const otherBoot = "6b1c7e5e-0000-0000-0000-000000000000"
	dir := newDir(t)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	sealed := func(when string, thisBoot, another bool) {
		t.Helper()
		if got := isSealed(root, bootID()); got != thisBoot {
			t.Errorf("%s: sealed: %v", when, got)
		}
		if got := isSealed(root, otherBoot); got != another {
			t.Errorf("%s, after another start of the machine: sealed: %v", when, got)
		}
		if got := isSealed(root, ""); got != another {
			t.Errorf("%s, where nothing tells one start from another: sealed: %v", when, got)
		}
	}
	c := openCache(t, Options{Dir: dir})
	scanned(t, c) // of a new directory, which counts as incomplete until then
	filler(t, c, "p", 3)
	sealed("open", true, false)
	closeCache(t, c)
	sealed("closed", true, true)
	c = openCache(t, Options{Dir: dir})
	sealed("open again", true, false)
	c.lostTrack() // as a killed process leaves it
	closeCache(t, c)
	sealed("without an end", true, false)

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
	sealed("a copy put back", false, false)
	c = openCache(t, Options{Dir: dir})
	sealed("checked", true, false)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // a file's time is that of a tick of the clock
	if _, err := f.WriteAt(text[:1], 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	sealed("written to", false, false)
	scanned(t, c)
	closeCache(t, c)
	sealed("closed", true, true)
}

// Guards against a seal that saves nothing: what it vouches for is not read at the
// start, so that even a wrong count in it goes unnoticed.
func TestSealedIndexIsNotReadAtTheStart(t *testing.T) {
	for _, sealed := range []bool{true, false} {
		dir := newDir(t)
		c := openCache(t, Options{Dir: dir})
		scanned(t, c)
		filler(t, c, "p", 3)
		closeCache(t, c)
		db, err := bbolt.Open(filepath.Join(dir, indexName), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error { return setMeta(tx.Bucket(bucketMeta), metaPaths, 99) })
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		want := int64(3)
		if sealed {
			want = 99
			if err := seal(root, bootID()); err != nil {
				t.Fatal(err)
			}
		}
		c = openCache(t, Options{Dir: dir})
		scanned(t, c)
		if got := c.Stats().Paths; got != want {
			t.Errorf("sealed: %v: %d paths, want %d", sealed, got, want)
		}
		closeCache(t, c)
	}
}
