package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"nixbastion/internal/nix"
)

// stocked makes a cache with paths in several domains and closes it.
func stocked(t *testing.T, dir string) []object {
	t.Helper()
	c := openCache(t, Options{Dir: dir})
	var all []object
	for i, name := range names("p", 20) {
		var refs []nix.StorePath
		if i > 0 && i != 7 {
			refs = append(refs, all[i-1].info.Path)
		}
		o := obj(name, strings.Repeat(name, i), refs...)
		o.info.Sigs = []nix.Signature{mustSig(signatureText)}
		o.receive(t, c, Grant{Domain: "team", Provenance: Signed, Public: i < 5})
		all = append(all, o)
	}
	all[7].receive(t, c, Grant{Domain: "others", Provenance: DomainVouched})
	closeCache(t, c)
	return all
}

// intact checks that the cache answers all that stocked put there, and nothing
// else, at once and after the scan.
func intact(t *testing.T, c *Cache, all []object) {
	t.Helper()
	for range 2 {
		for i, o := range all {
			o.holds(t, c, "team")
			wantProvenance(t, c, "team", o.info.Path, Signed)
			if i < 5 {
				o.holds(t, c, "others")
			} else if i != 7 {
				absent(t, c, "others", o.info.Path)
			}
		}
		absent(t, c, "team", pathNamed("never"))
		scanned(t, c)
	}
	var bytes int64
	for _, o := range all {
		bytes += cost(o.info.NarSize)
	}
	if s := c.Stats(); s.Paths != 25+1 || s.Bytes != bytes {
		t.Errorf("stats: %+v, want %d bytes", s, bytes)
	}
}

// Guards against an index that is more than a convenience: without it, or with
// any damage to it, every path must be answered as before.
func TestIndexIsRebuiltFromTheNarinfos(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	damage := map[string]func(name string, content []byte) error{
		"untouched": func(string, []byte) error { return nil },
		"deleted":   func(name string, _ []byte) error { return os.Remove(name) },
		"emptied":   func(name string, _ []byte) error { return os.Truncate(name, 0) },
		"one byte":  func(name string, _ []byte) error { return os.Truncate(name, 1) },
		"cut":       func(name string, b []byte) error { return os.Truncate(name, int64(len(b)/2)) },
		"cut short": func(name string, _ []byte) error { return os.Truncate(name, 2*4096) },
		"text": func(name string, _ []byte) error {
			return os.WriteFile(name, []byte(strings.Repeat("text", 10_000)), 0o600)
		},
		"other version": func(name string, _ []byte) error {
			db, err := bbolt.Open(name, 0o600, nil)
			if err != nil {
				return err
			}
			return errors.Join(db.Update(func(tx *bbolt.Tx) error { return setMeta(tx.Bucket(bucketMeta), metaVersion, 99) }), db.Close())
		},
		"wrong count of names": func(name string, _ []byte) error {
			db, err := bbolt.Open(name, 0o600, nil)
			if err != nil {
				return err
			}
			return errors.Join(db.Update(func(tx *bbolt.Tx) error {
				nars := tx.Bucket(bucketNars)
				k, v := nars.Cursor().First()
				return nars.Put(bytes.Clone(k), append([]byte{0, 0, 0, 9}, v[4:]...))
			}), db.Close())
		},
	}
	for i := range 40 {
		damage[fmt.Sprintf("garbage %d", i)] = func(name string, b []byte) error {
			at := random.IntN(len(b))
			for j := range b[at:min(len(b), at+1+random.IntN(6000))] {
				b[at+j] = byte(random.Uint32())
			}
			return os.WriteFile(name, b, 0o600)
		}
	}
	template := newDir(t)
	all := stocked(t, template)
	for name, harm := range damage {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(newDir(t), "cache")
			if err := copyTree(dir, template); err != nil {
				t.Fatal(err)
			}
			index := filepath.Join(dir, indexName)
			content, err := os.ReadFile(index)
			if err != nil {
				t.Fatal(err)
			}
			if err := harm(index, content); err != nil {
				t.Fatal(err)
			}
			c := openCache(t, Options{Dir: dir})
			intact(t, c, all)
			closeCache(t, c)
			c = openCache(t, Options{Dir: dir}) // and the new one is as good
			if name != "untouched" && c.index.incomplete {
				t.Error("the rebuilt index is not complete")
			}
			intact(t, c, all)
		})
	}
}

// copyTree is os.CopyFS with symlinks as they are.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, name)
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(name)
			return errors.Join(err, os.Symlink(link, target))
		}
		content, err := os.ReadFile(name)
		return errors.Join(err, os.WriteFile(target, content, 0o600))
	})
}

// Guards against files in the layout that are not ours, or broken, and are
// believed, or that keep the rest from being found.
func TestRebuildPutsBrokenNarinfosAside(t *testing.T) {
	dir := newDir(t)
	all := stocked(t, dir)
	team := filepath.Join(dir, "domain", "team")
	narinfo := func(o object) string { return filepath.Join(team, o.info.Path.HashPart()+narinfoSuffix) }
	edit := func(o object, old, new string) {
		t.Helper()
		text, err := os.ReadFile(narinfo(o))
		if err != nil || !strings.Contains(string(text), old) {
			t.Fatalf("%s: %v", text, err)
		}
		if err := os.WriteFile(narinfo(o), []byte(strings.Replace(string(text), old, new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit(all[19], "Compression: none", "Compression: xz")
	edit(all[18], "URL: nar/", "URL: ../nar/")
	edit(all[17], "NarSize: ", "NarSize: 1")
	edit(all[16], "StorePath: /nix/store/", "StorePath: /nix/store/0")
	for _, harm := range []error{
		os.WriteFile(narinfo(all[15]), nil, 0o600),
		os.Rename(narinfo(all[14]), filepath.Join(team, strings.Repeat("0", 32)+narinfoSuffix)),
		os.Remove(narFile(dir, all[13])),
		os.Truncate(narFile(dir, all[12]), 8),
		os.WriteFile(narFile(dir, all[11])+".part", nil, 0o600),
		os.WriteFile(filepath.Join(dir, "domain", "README"), nil, 0o600),
		os.MkdirAll(filepath.Join(dir, "domain", "no domain"), 0o700),
		os.WriteFile(filepath.Join(dir, "nar", "file"), nil, 0o600),
		os.Remove(filepath.Join(dir, indexName)),
	} {
		if harm != nil {
			t.Fatal(harm)
		}
	}
	for range 2 {
		c := openCache(t, Options{Dir: dir})
		scanned(t, c)
		for i, o := range all {
			if i >= 12 {
				absent(t, c, "team", o.info.Path)
			} else {
				o.holds(t, c, "team")
			}
		}
		closeCache(t, c)
	}
	wantFiles(t, filepath.Join(dir, "quarantine"), narinfoSuffix, 8)
	wantFiles(t, filepath.Join(dir, "nar"), narSuffix, 12)
}

// Guards against a scan that ends early and then sweeps what it did not see.
func TestAFolderThatCannotBeReadEndsTheScan(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("p", "p")
	o.receive(t, c, in("team"))
	flushed(t, c)
	folder := filepath.Join(dir, "domain", "team")
	if err := os.Rename(folder, folder+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(folder, nil, 0o600); err != nil { // opens, and cannot be listed
		t.Fatal(err)
	}
	if err := eachName(c.root, "domain/team", func([]string) error { return nil }); err == nil {
		t.Error("a folder that cannot be read is taken for an empty one")
	}
	if err := c.scanDomain(t.Context(), "team"); err == nil {
		t.Error("the scan of it succeeds")
	}
}

// Guards against a live row that answers an error for ever when its file is gone
// or short, and against the loss of what could explain it.
func TestBrokenNARUnderALiveRowIsAMiss(t *testing.T) {
	for name, harm := range map[string]func(name string) error{
		"missing": os.Remove,
		"short":   func(name string) error { return os.Truncate(name, 16) },
		"long":    func(name string) error { return os.Truncate(name, 1<<20) },
		"folder":  func(name string) error { return errors.Join(os.Remove(name), os.Mkdir(name, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			c := openCache(t, Options{Dir: dir})
			o, other := obj("out", "content"), obj("other", "other")
			domains := []string{"team", "two"}[:1+len(name)%2] // the last record, or one of two
			for _, domain := range domains {
				o.receive(t, c, in(domain))
			}
			other.receive(t, c, in("team"))
			flushed(t, c)
			if err := harm(narFile(dir, o)); err != nil {
				t.Fatal(err)
			}
			for _, domain := range domains {
				if _, err := readNar(t.Context(), c, domain, o.info.Path); !errors.Is(err, nix.ErrNotFound) {
					t.Errorf("got %v, want not found", err)
				}
				absent(t, c, domain, o.info.Path)
			}
			if s := c.Stats(); s.Broken != int64(len(domains)) || s.Paths != 1 || s.Bytes != unit {
				t.Errorf("stats: %+v", s)
			}
			if name != "missing" {
				if _, err := os.Lstat(filepath.Join(dir, "quarantine", filepath.Base(narFile(dir, o)))); err != nil {
					t.Errorf("what was found is not kept: %v", err)
				}
			}
			wantFiles(t, dir, narinfoSuffix, 1)
			other.holds(t, c, "team")
			o.mustBe(t, Added, o.receive(t, c, in("team"))) // and it can be brought again
			flushed(t, c)
			o.holds(t, c, "team")
		})
	}
}

// Guards against a path that only the index knows: a crash came between its
// narinfo and its row when it was evicted.
func TestRowWithoutNarinfoGoesAfterACrash(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("out", "content")
	o.receive(t, c, in("team"))
	flushed(t, c)
	if err := os.Remove(filepath.Join(dir, keyOf("team", o.info.Path).narinfoName())); err != nil {
		t.Fatal(err)
	}
	c.lostTrack() // as a killed process leaves it
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir})
	scanned(t, c)
	absent(t, c, "team", o.info.Path)
	wantFiles(t, dir, narSuffix, 0)
	if s := c.Stats(); s.Paths != 0 || s.Bytes != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// Guards against an upload that is thrown away because a row says that its bytes
// are here, when they are not.
func TestUploadReplacesALostNAR(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("out", "content")
	o.receive(t, c, in("team"))
	flushed(t, c)
	if err := os.Remove(narFile(dir, o)); err != nil {
		t.Fatal(err)
	}
	o.mustBe(t, AlreadyValid, o.receive(t, c, in("team")))
	o.holds(t, c, "team")
	flushed(t, c)
	o.holds(t, c, "team")
}

// Guards against an index that could not be written and is taken for complete:
// what was published meanwhile would be lost for good.
func TestUnwrittenIndexIsNotBelieved(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	before, after := obj("before", "1"), obj("after", "2")
	before.receive(t, c, in("team"))
	flushed(t, c)
	scanned(t, c)
	broken, err := bbolt.Open(filepath.Join(newDir(t), "broken"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	broken.Close()
	good := c.index.db.Load()
	c.keeper.do(func() { c.index.db.Store(broken) })
	after.receive(t, c, in("team"))
	if err := c.Flush(t.Context()); err == nil {
		t.Error("flush succeeds without an index")
	}
	if s := c.Stats(); s.Unpublished != 1 {
		t.Errorf("stats: %+v", s)
	}
	c.keeper.do(func() { c.index.db.Store(good) })
	after.holds(t, c, "team") // its files are there
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir})
	if !c.index.incomplete {
		t.Fatal("the index counts as complete")
	}
	before.holds(t, c, "team")
	after.holds(t, c, "team")
}
