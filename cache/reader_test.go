package cache

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

// rot changes one byte of a NAR on disk, and neither its length nor its times, as
// a failing disk does.
func rot(t testing.TB, dir string, o object, at int64) {
	t.Helper()
	name := narFile(dir, o)
	before, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	b[0] ^= 1
	if _, writeErr := f.WriteAt(b[:], at); err != nil || writeErr != nil {
		t.Fatal(err, writeErr)
	}
	if err := os.Chtimes(name, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// Guards against bytes that rotted on disk and are served: the reader must not see
// a clean end, wherever the wrong byte is and however it reads, and nobody in any
// domain is told afterwards that the path is there.
func TestDamagedNARNeverEndsCleanly(t *testing.T) {
	o := obj("out", strings.Repeat("content", 100_000))
	other := obj("same-bytes", strings.Repeat("content", 100_000))
	for _, at := range []int64{0, 96, int64(len(o.nar)) / 2, int64(len(o.nar)) - heldBack - 1, int64(len(o.nar)) - heldBack, int64(len(o.nar)) - 1} {
		dir := newDir(t)
		c := openCache(t, Options{Dir: dir})
		bystander := obj("bystander", "fine")
		o.receive(t, c, in("team"))
		o.receive(t, c, in("others"))
		other.receive(t, c, in("team"))
		bystander.receive(t, c, in("team"))
		flushed(t, c)
		rot(t, dir, o, at)
		got, err := readNar(t.Context(), c, "team", o.info.Path)
		refusedWith(t, err, "was damaged on the proxy's disk")
		if len(got) > len(o.nar)-heldBack {
			t.Errorf("byte %d is wrong: %d of %d bytes were given out", at, len(got), len(o.nar))
		}
		absent(t, c, "team", o.info.Path)
		absent(t, c, "others", o.info.Path)
		absent(t, c, "team", other.info.Path)
		bystander.holds(t, c, "team")
		if s := c.Stats(); s.Corrupt != 1 || s.Broken != 3 || s.Paths != 1 || s.Bytes != unit {
			t.Errorf("stats: %+v", s)
		}
		if _, err := os.Stat(filepath.Join(dir, quarantineDir, filepath.Base(narFile(dir, o)))); err != nil {
			t.Errorf("what was found is not kept: %v", err)
		}
		wantFiles(t, dir, narinfoSuffix, 1)
		o.mustBe(t, Added, o.receive(t, c, in("team"))) // and it can be brought again
		flushed(t, c)
		o.holds(t, c, "team")
		closeCache(t, c)
	}
}

// Guards against a check that is made in one process only: rot comes with time.
func TestFirstReadAfterAStartIsChecked(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("out", "content")
	o.receive(t, c, in("team"))
	flushed(t, c)
	o.holds(t, c, "team")
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir})
	rot(t, dir, o, 100)
	_, err := readNar(t.Context(), c, "team", o.info.Path)
	refusedWith(t, err, "was damaged on the proxy's disk")
	absent(t, c, "team", o.info.Path)
}

// Guards against a check that costs every reader, and one that is never made
// again: of a file that was written to, or after a week.
func TestReadNARsAreCheckedAgainInTime(t *testing.T) {
	var clock atomic.Int64 // the keeper looks at it too
	clock.Store(1_700_000_000_000_000_000)
	now := func() time.Time { return time.Unix(0, clock.Load()) }
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir, Now: now})
	o := obj("out", "content")
	o.receive(t, c, in("team"))
	flushed(t, c)
	due := func() bool {
		r := openNar(t, c, o)
		defer r.Close()
		_, checks := r.(*checkingReader)
		return checks
	}
	if !due() {
		t.Error("the first read is not checked")
	}
	if !due() {
		t.Error("a read that did not come to its end counts")
	}
	for range 3 {
		o.holds(t, c, "team")
		if due() {
			t.Error("checked twice")
		}
		clock.Add(int64(recheckAfter/2 - time.Second))
		if due() {
			t.Error("checked again too early")
		}
		clock.Add(int64(recheckAfter/2 + time.Second))
		if !due() {
			t.Error("not checked again in time")
		}
	}
	o.holds(t, c, "team")
	if err := os.Chtimes(narFile(dir, o), now(), now()); err != nil {
		t.Fatal(err)
	}
	if !due() {
		t.Error("a file that was written to is not checked again")
	}
	if n := c.reading.Load(); n != 0 {
		t.Errorf("%d readers are left", n)
	}
}

// Guards against memory that grows with the store.
func TestWhatWasCheckedIsBounded(t *testing.T) {
	s := newCheckedNARs(time.Now)
	h := nix.HashBytes(nix.SHA256, nil)
	for i := range uint64(3*maxChecked + 10) {
		s.add(h, fileID{ino: i})
	}
	if n := len(s.young) + len(s.old); n > 2*maxChecked {
		t.Errorf("%d are remembered", n)
	}
	if !s.has(h, fileID{ino: 3*maxChecked + 9}) || s.has(h, fileID{ino: 0}) {
		t.Error("the last is forgotten, or the first is not")
	}
}

// Guards against readers that fall over each other: all of them learn of the
// damage, it is counted once, and what was brought anew meanwhile stays.
func TestFirstReadersMayBeMany(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("out", strings.Repeat("content", 10_000))
	o.receive(t, c, in("team"))
	flushed(t, c)
	var readers []io.ReadCloser
	for range 8 {
		readers = append(readers, openNar(t, c, o))
	}
	rot(t, dir, o, 5000)
	late := readers[7]
	errs := make(chan error)
	for _, r := range readers[:7] {
		go func() {
			_, err := io.Copy(io.Discard, r)
			errs <- errors.Join(err, r.Close())
		}()
	}
	for range 7 {
		refusedWith(t, <-errs, "was damaged on the proxy's disk")
	}
	absent(t, c, "team", o.info.Path)
	o.receive(t, c, in("team"))
	flushed(t, c)
	if _, err := io.Copy(io.Discard, late); err == nil {
		t.Error("a reader of the old file sees a clean end")
	}
	late.Close()
	o.holds(t, c, "team")
	if s := c.Stats(); s.Corrupt != 1 || s.Broken != 1 {
		t.Errorf("stats: %+v", s)
	}
}

// Guards against readers that take other steps than io.Copy: one byte at a time,
// none at all, and on behind the end.
func TestCheckedReaderReadsInAnySteps(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	o.receive(t, c, in("team"))
	flushed(t, c)
	r := openNar(t, c, o)
	defer r.Close()
	var got []byte
	for b := make([]byte, 1); ; {
		if n, err := r.Read(nil); n != 0 || err != nil && err != io.EOF {
			t.Fatalf("%d bytes, %v", n, err)
		}
		n, err := r.Read(b)
		got = append(got, b[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n, err := r.Read(make([]byte, 10)); n != 0 || err != io.EOF || !bytes.Equal(got, o.nar) {
		t.Errorf("%d bytes behind the end (%v), %d before it", n, err, len(got))
	}
}

// Guards against a walk through the index that leaves out a row or a NAR at the
// edge of a step.
func TestWalksSeeEverythingOnce(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	all := filler(t, c, "p", 25)
	for _, step := range []int{1, 2, 5, 25, 100} {
		var rows []string
		var last key
		for {
			found, at, err := c.index.entriesBehind(last, step, func(key, rowHead) bool { return true })
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range found {
				rows = append(rows, e.key.hashPart)
			}
			if at == last {
				break
			}
			last = at
		}
		nars := map[nix.Hash]bool{}
		var narHash nix.Hash
		for {
			found, err := c.index.narsBehind(narHash, step)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) == 0 {
				break
			}
			for _, n := range found {
				if nars[n.hash] {
					t.Errorf("%s twice", n.hash)
				}
				nars[n.hash], narHash = true, n.hash
			}
		}
		if len(rows) != len(all) || len(slices.Compact(rows)) != len(all) || len(nars) != len(all) {
			t.Errorf("steps of %d: %d rows, %d NARs", step, len(rows), len(nars))
		}
	}
}
