package cache

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fullOf opens a cache whose space is taken by pinned paths.
func fullOf(t *testing.T, dir string, o Options, n int) (*Cache, *Pins) {
	o.Dir, o.PinnedBytes = dir, o.Size
	c := openCache(t, o)
	pins := c.NewPins("alice")
	t.Cleanup(pins.Release)
	for _, name := range names("held", n) {
		held := obj(name, name)
		held.receive(t, c, in("team"))
		pins.Pin("team", pathsOf(held))
	}
	flushed(t, c)
	return c, pins
}

// Guards against an upload that fails although space would come, and against one
// that waits for ever: the patience ends with a sentence, and takes nothing along.
func TestFullStoreMeansWaitingThenASentence(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c, _ := fullOf(t, dir, Options{Size: 10 * unit}, 9)
		o := obj("good", strings.Repeat("x", 2*unit))
		stream := bytes.NewReader(o.nar)
		began := time.Now()
		_, err := c.Receive(t.Context(), o.info, stream, in("team"))
		refusedWith(t, err, "the proxy's store is full")
		if waited := time.Since(began); waited != roomWait || stream.Len() != len(o.nar) {
			t.Errorf("waited %v and read %d bytes", waited, len(o.nar)-stream.Len())
		}
		absent(t, c, "team", o.info.Path)
		if s := c.Stats(); s.Bytes != 9*unit {
			t.Errorf("stats: %+v", s)
		}
		small := obj("small", "small")
		small.mustBe(t, Added, small.receive(t, c, in("team"))) // what fits need not wait
	})
}

// Guards against a waiting upload that does not see that space came free.
func TestWaitingUploadGoesOnWhenSpaceIsFree(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c, pins := fullOf(t, dir, Options{Size: 10 * unit}, 9)
		o := obj("good", strings.Repeat("x", 2*unit))
		done := make(chan error)
		go func() {
			_, err := c.Receive(t.Context(), o.info, bytes.NewReader(o.nar), in("team"))
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("did not wait: %v", err)
		default:
		}
		pins.Release()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		o.holds(t, c, "team")
	})
}

// Guards against a client that is gone and still waits for space.
func TestWaitingForSpaceEndsWithItsContext(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c, _ := fullOf(t, dir, Options{Size: 10 * unit}, 9)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		o := obj("good", strings.Repeat("x", 2*unit))
		if _, err := c.Receive(ctx, o.info, bytes.NewReader(o.nar), in("team")); err == nil || ctx.Err() == nil {
			t.Errorf("got %v", err)
		}
		if c.room.waiting != 0 {
			t.Errorf("%d bytes are still asked for", c.room.waiting)
		}
	})
}

// Guards against outputs that fill the part of the store which only uploads may
// use: then no build could begin any more.
func TestReserveIsForUploads(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c, _ := fullOf(t, dir, Options{Size: 10 * unit, Reserve: 4 * unit}, 6)
		output, upload := obj("output", "output"), obj("upload", "upload")
		a := announced(t, c, output, in("team"))
		_, err := a.Fill(t.Context(), bytes.NewReader(output.nar))
		refusedWith(t, err, "the proxy's store is full")
		absent(t, c, "team", output.info.Path)
		upload.mustBe(t, Added, upload.receive(t, c, in("team")))
	})
}

// Guards against a path that waits for what can never be, and against sizes that
// overflow.
func TestPathLargerThanTheStoreIsRefusedAtOnce(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 10 * unit, Reserve: 4 * unit})
	for _, size := range []uint64{10*unit + 1, 10 * unit, 1<<63 - 1, 1<<64 - 1} {
		o := obj("good", "x")
		o.info.NarSize = size
		_, err := c.Receive(t.Context(), o.info, bytes.NewReader(o.nar), in("team"))
		refusedWith(t, err, "fit into the proxy's store")
	}
	o := obj("output", "x")
	o.info.NarSize = 7 * unit // fits, but not beside the reserve
	_, err := announced(t, c, o, in("team")).Fill(t.Context(), bytes.NewReader(o.nar))
	refusedWith(t, err, "fit into the proxy's store")
	absent(t, c, "team", o.info.Path)
}

// Guards against space that leaks with every way a path can end.
func TestSpaceIsGivenBack(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 100 * unit})
	o, differs := obj("o", "o"), obj("o", "other")
	bad := object{info: obj("bad", "bad").info, nar: o.nar}
	for range 20 {
		o.receive(t, c, in("team"))
		differs.receive(t, c, in("team"))
		if _, err := c.Receive(t.Context(), bad.info, bytes.NewReader(bad.nar), in("team")); err == nil {
			t.Fatal("a bad path was accepted")
		}
		announced(t, c, bad, in("team")).Abort(nil)
	}
	flushed(t, c)
	if s := c.Stats(); s.Bytes != unit || c.room.claimed != 0 {
		t.Errorf("stats: %+v, %d bytes claimed", s, c.room.claimed)
	}
	if _, err := c.QueryPathInfo("team", pathNamed("bad")); err == nil {
		t.Error("a bad path is valid")
	}
}
