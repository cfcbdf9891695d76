package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// announced makes an arrival that this test must bring.
func announced(t testing.TB, c *Cache, o object, g Grant) *Arrival {
	t.Helper()
	a, err := c.Announce(o.info, g)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Needed() {
		t.Fatalf("%s is not needed", o.info.Path.Name())
	}
	return a
}

// feed is a NAR that comes in pieces when the test says so.
type feed struct {
	w    *io.PipeWriter
	done chan error
}

func fillInBackground(t testing.TB, a *Arrival) *feed {
	r, w := io.Pipe()
	f := &feed{w: w, done: make(chan error, 1)}
	ctx := t.Context()
	go func() {
		_, err := a.Fill(ctx, r)
		r.CloseWithError(errors.New("nobody reads on"))
		f.done <- err
	}()
	return f
}

func (f *feed) send(t testing.TB, b []byte) {
	t.Helper()
	if _, err := f.w.Write(b); err != nil {
		t.Fatal(err)
	}
}

// Guards against a client that waits for the whole of a path while a builder
// still sends it, and against a clean end before the hash was checked.
func TestFollowersReadWhileThePathGrows(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, Options{Dir: dir})
		o := obj("out", strings.Repeat("0123456789abcdef", 10_000))
		a := announced(t, c, o, Grant{Domain: "team", Provenance: DomainVouched})
		wantProvenance(t, c, "team", o.info.Path, Claimed) // nobody vouches for what was not read
		if info, err := c.QueryPathInfo("team", o.info.Path); err != nil || info.NarHash != o.info.NarHash {
			t.Errorf("announced path info: %+v, %v", info, err)
		}
		f := fillInBackground(t, a)

		early := openNar(t, c, o)
		f.send(t, o.nar[:100_000])
		late := openNar(t, c, o)
		for _, r := range []io.ReadCloser{early, late} {
			if _, err := io.ReadFull(r, make([]byte, 100_000-heldBack)); err != nil {
				t.Fatalf("read what has arrived: %v", err)
			}
		}
		f.send(t, o.nar[100_000:len(o.nar)-1])
		rest := len(o.nar) - 100_000 - 1
		for _, r := range []io.ReadCloser{early, late} {
			if _, err := io.ReadFull(r, make([]byte, rest)); err != nil {
				t.Fatalf("read what has arrived: %v", err)
			}
		}
		var ends sync.WaitGroup
		for _, r := range []io.ReadCloser{early, late} {
			ends.Go(func() {
				if end, err := io.ReadAll(r); err != nil || !bytes.Equal(end, o.nar[len(o.nar)-heldBack-1:]) {
					t.Errorf("the end: %d bytes, %v", len(end), err)
				}
				r.Close()
			})
		}
		synctest.Wait() // both wait for the end
		f.send(t, o.nar[len(o.nar)-1:])
		ends.Wait()
		if err := <-f.done; err != nil {
			t.Fatal(err)
		}
		wantProvenance(t, c, "team", o.info.Path, DomainVouched)
		if outcome, err := a.Wait(t.Context()); err != nil || outcome != AlreadyValid {
			t.Errorf("wait: %v, %v", outcome, err)
		}
	})
}

func openNar(t testing.TB, c *Cache, o object) io.ReadCloser {
	t.Helper()
	r, err := c.OpenNar(t.Context(), "team", o.info.Path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Guards against a wrong NAR that a follower takes for a whole one: whatever is
// wrong, its stream must break, without the end, and the path must be gone.
func TestFollowersNeverSeeAWrongNAREnd(t *testing.T) {
	good := obj("out", strings.Repeat("x", 100_000))
	flipped := bytes.Clone(good.nar)
	flipped[50_000] ^= 1
	lost := errors.New("builder lost")
	for name, end := range map[string]func(*testing.T, *Arrival) error{
		"wrong hash": func(t *testing.T, a *Arrival) error {
			_, err := a.Fill(t.Context(), bytes.NewReader(flipped))
			return err
		},
		"cut in the last byte": func(t *testing.T, a *Arrival) error {
			_, err := a.Fill(t.Context(), bytes.NewReader(good.nar[:len(good.nar)-1]))
			return err
		},
		"connection lost": func(t *testing.T, a *Arrival) error {
			f := fillInBackground(t, a)
			f.send(t, good.nar[:len(good.nar)-1])
			f.w.CloseWithError(lost)
			return <-f.done
		},
		"aborted": func(t *testing.T, a *Arrival) error {
			a.Abort(lost)
			return lost
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			c := openCache(t, Options{Dir: dir})
			a := announced(t, c, good, in("team"))
			second, err := c.Announce(good.info, in("team"))
			if err != nil || second.Needed() {
				t.Fatalf("a second announcement: %+v, %v", second, err)
			}
			r := openNar(t, c, good)
			type result struct {
				n   int
				err error
			}
			follower := make(chan result)
			go func() {
				b, err := io.ReadAll(r)
				r.Close()
				follower <- result{len(b), err}
			}()
			if err := end(t, a); err == nil {
				t.Fatal("a wrong NAR was taken")
			}
			if got := <-follower; got.err == nil || got.n > len(good.nar)-8 { // what closes the archive
				t.Errorf("the follower got %d of %d bytes and the end %v", got.n, len(good.nar), got.err)
			}
			if _, err := second.Wait(t.Context()); err == nil {
				t.Error("who waited was told that the path came")
			}
			a.Abort(nil) // does nothing any more
			absent(t, c, "team", good.info.Path)
			flushed(t, c)
			wantFiles(t, dir, narSuffix, 0)
			wantFiles(t, dir+"/"+c.scratch.dir, "", 0)
			if s := c.Stats(); s.Bytes != 0 || s.Arriving != 0 {
				t.Errorf("stats: %+v", s)
			}
			a = announced(t, c, good, in("team")) // and may be brought again
			if outcome, err := a.Fill(t.Context(), bytes.NewReader(good.nar)); err != nil || outcome != Added {
				t.Errorf("again: %v, %v", outcome, err)
			}
			good.holds(t, c, "team")
		})
	}
}

// Guards against a slow client that holds up the copy of an output, and with it
// the builder's session.
func TestTheWriterNeverWaitsForAReader(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", strings.Repeat("y", 2<<20))
	a := announced(t, c, o, in("team"))
	var readers []io.ReadCloser
	for range 4 {
		readers = append(readers, openNar(t, c, o)) // and none reads
	}
	if _, err := a.Fill(t.Context(), bytes.NewReader(o.nar)); err != nil {
		t.Fatal(err)
	}
	flushed(t, c) // the file has moved to its place
	for _, r := range readers {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, o.nar) {
			t.Errorf("a late reader got %d bytes, %v", len(got), err)
		}
		r.Close()
	}
}

// Guards against a follower that hangs when its own client leaves, or that takes
// the arrival with it.
func TestAFollowerLeavesAlone(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	a := announced(t, c, o, in("team"))
	ctx, cancel := context.WithCancelCause(t.Context())
	r, err := c.OpenNar(ctx, "team", o.info.Path)
	if err != nil {
		t.Fatal(err)
	}
	left := errors.New("left")
	cancel(left)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, left) {
		t.Errorf("got %v", err)
	}
	r.Close()
	if _, err := a.Fill(t.Context(), bytes.NewReader(o.nar)); err != nil {
		t.Fatal(err)
	}
	o.holds(t, c, "team")
	if _, err := a.Fill(t.Context(), bytes.NewReader(o.nar)); err == nil {
		t.Error("an arrival was filled twice")
	}
}

// Guards against an end of the process that hangs on what never arrives.
func TestCloseEndsFollowers(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	a := announced(t, c, o, in("team"))
	r := openNar(t, c, o)
	defer r.Close()
	closeCache(t, c)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("follower: got %v", err)
	}
	if _, err := a.Fill(t.Context(), bytes.NewReader(o.nar)); err == nil {
		t.Error("a closed cache took a path")
	}
	if _, err := c.Receive(t.Context(), o.info, bytes.NewReader(o.nar), in("team")); err == nil {
		t.Error("a closed cache took an upload")
	}
}

// Guards against an answer of the cache that depends on which of two paths with
// one hash part came last: their narinfo files have one name.
func TestTwoPathsOfOneHashPartAreRefused(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	first := obj("first", "1")
	twin := obj("twin", "2")
	twin.info.Path = mustPath(first.info.Path.HashPart() + "-twin")
	first.receive(t, c, in("team")) // on its way to the disk
	_, err := c.Announce(twin.info, in("team"))
	refusedWith(t, err, "has the same hash")
	_, err = c.Receive(t.Context(), twin.info, bytes.NewReader(twin.nar), in("team"))
	refusedWith(t, err, "has the same hash")
	flushed(t, c)
	_, err = c.Announce(twin.info, in("team"))
	refusedWith(t, err, "has the same hash")
	first.holds(t, c, "team")
	absent(t, c, "team", twin.info.Path)
	twin.mustBe(t, Added, twin.receive(t, c, in("others")))
	absent(t, c, "others", first.info.Path)
}
