package cache

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nixbastion/internal/nix"
)

// unit is what a small path costs.
const unit = 2 * blockSize

// ticks is a clock that moves with every look at it, so that no two uses fall
// together.
func ticks() func() time.Time {
	var n atomic.Int64
	return func() time.Time { return time.Unix(1_700_000_000, n.Add(1)*1000) }
}

// roomy runs evictions until there is no need for another.
func roomy(t testing.TB, c *Cache) {
	t.Helper()
	for range 1000 {
		excess := c.room.excess()
		if excess == 0 {
			return
		}
		c.keeper.do(c.keeper.evict)
	}
	t.Fatalf("still %d bytes too much", c.room.excess())
}

// filler uploads n small paths that nobody asks for again.
func filler(t testing.TB, c *Cache, prefix string, n int) []object {
	t.Helper()
	list := make([]object, n)
	for i, name := range names(prefix, n) {
		list[i] = obj(name, name)
		list[i].receive(t, c, in("team"))
	}
	flushed(t, c)
	return list
}

func validNames(c *Cache, objects []object) []string {
	var valid []string
	for _, o := range objects {
		if rec, err := c.index.find([]key{keyOf("team", o.info.Path)}); err == nil && rec[0] != nil {
			valid = append(valid, o.info.Path.Name())
		}
	}
	return valid
}

// Guards against an eviction that takes what is used or promised, takes all, or
// counts wrongly.
func TestEvictionTakesWhatWasUsedLongestAgo(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir, Size: 20 * unit, Now: ticks()})
	old := filler(t, c, "old", 18)
	pins := c.NewPins("alice")
	defer pins.Release()
	pins.Pin("team", []nix.StorePath{old[1].info.Path})
	old[0].holds(t, c, "team") // used just now
	young := filler(t, c, "young", 1)
	roomy(t, c)
	if got := validNames(c, old); slices.Contains(got, "old2") || !slices.Contains(got, "old0") || !slices.Contains(got, "old1") || !slices.Contains(got, "old17") {
		t.Errorf("valid: %q", got)
	}
	young[0].holds(t, c, "team")
	absent(t, c, "team", old[2].info.Path)
	left := len(validNames(c, old)) + 1
	if want := 20 * lowWatermark / 100; left < want-1 || left > want {
		t.Errorf("%d paths stay, want about %d", left, want)
	}
	wantFiles(t, dir, narSuffix, left)
	wantFiles(t, dir, narinfoSuffix, left)
	if s := c.Stats(); s.Evictions != int64(19-left) || s.EvictedBytes != int64(19-left)*unit || s.Paths != int64(left) || s.Bytes != int64(left)*unit {
		t.Errorf("stats with %d paths: %+v", left, s)
	}
}

// Guards against recency that is lost at a restart.
func TestRecencySurvivesARestart(t *testing.T) {
	dir := newDir(t)
	now := ticks()
	c := openCache(t, Options{Dir: dir, Size: 20 * unit, Now: now})
	old := filler(t, c, "old", 18)
	old[0].holds(t, c, "team")
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir, Size: 20 * unit, Now: now})
	filler(t, c, "young", 1)
	roomy(t, c)
	if got := validNames(c, old); slices.Contains(got, "old1") || !slices.Contains(got, "old0") {
		t.Errorf("valid: %q", got)
	}
}

// Guards against a path that counts as old though it was used just now, since the look
// for what the index lacks came by.
func TestRecencySurvivesALookForStrays(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 20 * unit, Now: ticks()})
	one := filler(t, c, "used", 1)[0]
	one.holds(t, c, "team")
	k := keyOf("team", one.info.Path)
	c.keeper.do(func() {
		if err := c.keeper.adopt([]key{k}); err != nil {
			t.Error(err)
		}
	})
	if _, is := c.takeTouched()[k]; !is {
		t.Error("nobody knows any more that it was used")
	}
}

// Guards against a path that is answered though its closure is gone: what others
// refer to goes last, however long ago it was used itself.
func TestReferrersGoBeforeReferences(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 20 * unit, Now: ticks()})
	lib := obj("lib", "lib")
	lib.receive(t, c, in("team"))
	tool := obj("tool", "tool", lib.info.Path, pathNamed("tool"))
	tool.receive(t, c, in("team"))
	foreign := obj("foreign", "foreign")
	foreign.receive(t, c, in("others"))
	fill := filler(t, c, "fill", 15)
	tool.holds(t, c, "team") // the library is the least recently used
	filler(t, c, "more", 1)
	roomy(t, c)
	lib.holds(t, c, "team")
	tool.holds(t, c, "team")
	if got := validNames(c, fill); len(got) == len(fill) {
		t.Error("nothing was evicted")
	}
	for i := range 14 { // and when all are old, both go
		filler(t, c, fmt.Sprintf("new%d-", i), 2)
		roomy(t, c)
		c.keeper.do(func() { closed(t, c, "team") })
	}
	absent(t, c, "team", tool.info.Path)
	absent(t, c, "team", lib.info.Path)
}

// closed checks that no path of a domain lacks what it refers to. It runs on the
// keeper's goroutine.
func closed(t interface{ Errorf(string, ...any) }, c *Cache, domain string) {
	err := c.index.oldest(func(cand candidate) bool {
		if cand.key.domain != domain {
			return true
		}
		recs, err := c.index.find([]key{cand.key})
		if err != nil || recs[0] == nil {
			t.Errorf("%v: %v", cand.key, err)
			return true
		}
		for _, ref := range recs[0].info.References {
			here, err := c.index.find([]key{keyOf(domain, ref), keyOf(publicDomain, ref)})
			if err != nil || here[0] == nil && here[1] == nil {
				t.Errorf("%s is valid in %q, %s is not (%v)", recs[0].info.Path.Name(), domain, ref.Name(), err)
			}
		}
		return true
	})
	if err != nil {
		t.Errorf("%v", err)
	}
}

// Guards against graphs for which the order of eviction goes wrong, or never ends.
func TestEvictionKeepsClosuresWhole(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c, err := Open(t.Context(), Options{Dir: newDir(t), Size: 30 * unit, Now: ticks()})
		if err != nil {
			rt.Fatal(err)
		}
		defer c.Close()
		pins := c.NewPins("alice")
		defer pins.Release()
		var all []object
		for i := range rapid.IntRange(5, 28).Draw(rt, "paths") {
			var refs []nix.StorePath
			for range rapid.IntRange(0, 3).Draw(rt, "references") {
				if i > 0 {
					refs = append(refs, all[rapid.IntRange(0, i-1).Draw(rt, "reference")].info.Path)
				}
			}
			o := obj(fmt.Sprintf("p%d", i), fmt.Sprint(i), refs...)
			o.receive(t, c, in("team"))
			all = append(all, o)
		}
		flushed(t, c)
		pinned := all[rapid.IntRange(0, len(all)-1).Draw(rt, "pinned")].info.Path
		pins.Pin("team", []nix.StorePath{pinned})
		for range rapid.IntRange(0, 5).Draw(rt, "uses") {
			c.QueryValidPaths("team", []nix.StorePath{all[rapid.IntRange(0, len(all)-1).Draw(rt, "used")].info.Path})
		}
		c.keeper.do(func() {
			c.keeper.writeRecency()
			for range 200 { // one path at a time, to the end
				plan := c.keeper.plan(1)
				if len(plan.victims)+len(plan.deferred) == 0 {
					break
				}
				if err := c.keeper.remove(plan.victims, plan.deferred); err != nil {
					rt.Error(err)
				}
				c.unclaim(plan.victims)
				closed(rt, c, "team")
			}
		})
		for _, o := range all { // what stays is the closure of the pinned path
			_, err := c.QueryPathInfo("team", o.info.Path)
			if want := inClosure(all, pinned, o.info.Path); (err == nil) != want {
				rt.Errorf("%s: valid %v, want %v", o.info.Path.Name(), err == nil, want)
			}
		}
	})
}

func inClosure(all []object, root, p nix.StorePath) bool {
	if root == p {
		return true
	}
	i := slices.IndexFunc(all, func(o object) bool { return o.info.Path == root })
	return slices.ContainsFunc(all[i].info.References, func(ref nix.StorePath) bool { return inClosure(all, ref, p) })
}

// Guards against an eviction that runs for ever over references in a circle.
func TestReferencesInACircleEnd(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 20 * unit, Now: ticks()})
	a, b := obj("a", "a", pathNamed("b")), obj("b", "b", pathNamed("a"))
	for _, o := range []object{a, b} {
		if _, err := announced(t, c, o, in("team")).Fill(t.Context(), bytes.NewReader(o.nar)); err != nil {
			t.Fatal(err)
		}
	}
	flushed(t, c)
	c.keeper.do(func() {
		for range 10 * maxIdle {
			plan := c.keeper.plan(1)
			if len(plan.victims) > 0 {
				t.Errorf("evicted %v", plan.victims)
			}
			if err := c.keeper.remove(nil, plan.deferred); err != nil {
				t.Error(err)
			}
			if !c.keeper.goesOn(plan) {
				return
			}
		}
		t.Error("never gives up")
	})
}

// Guards against an upload whose references go while it is under way: it would
// be valid without its closure.
func TestReferencesOfAnUploadStay(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 20 * unit, Now: ticks()})
	lib := obj("lib", "lib")
	lib.receive(t, c, in("team"))
	flushed(t, c)
	tool := obj("tool", strings.Repeat("tool", 100), lib.info.Path)
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := c.Receive(t.Context(), tool.info, r, in("team"))
		done <- err
	}()
	if _, err := w.Write(tool.nar[:100]); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		filler(t, c, fmt.Sprintf("fill%d-", i), 3)
		roomy(t, c)
	}
	if _, err := w.Write(tool.nar[100:]); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	lib.holds(t, c, "team")
	tool.holds(t, c, "team")
	flushed(t, c)
	if len(c.pins) != 0 {
		t.Errorf("pins stay: %v", c.pins)
	}
}

// Guards against a reader whose NAR is evicted under it.
func TestOpenReaderOutlivesEviction(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir, Size: 100 * unit, Now: ticks()})
	o := obj("out", strings.Repeat("z", 100_000))
	o.receive(t, c, in("team"))
	flushed(t, c)
	r := openNar(t, c, o)
	defer r.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	filler(t, c, "fill", 90)
	roomy(t, c)
	absent(t, c, "team", o.info.Path)
	if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(append(head, rest...), o.nar) {
		t.Errorf("the reader got %d bytes and %v", len(rest), err)
	}
}
