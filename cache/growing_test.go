package cache

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
)

// shownUpload begins an upload that is shown, and returns a reader that follows it.
func shownUpload(t testing.TB, c *Cache, o object, nar io.Reader, g Grant) (r io.ReadCloser, done <-chan error) {
	t.Helper()
	opened, ended := make(chan io.ReadCloser, 1), make(chan error, 1)
	ctx := t.Context()
	go func() {
		_, err := c.ReceiveShown(ctx, o.info, nar, g, func(g *Growing) {
			r, err := g.Open(ctx)
			if err != nil {
				t.Error(err)
			}
			opened <- r
		})
		ended <- err
	}()
	return <-opened, ended
}

// Guards against an upload that nobody can read before all of it is here, and
// against a clean end before it is valid.
func TestUploadsAreReadWhileTheyGrow(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, Options{Dir: dir})
		o := obj("in", strings.Repeat("0123456789abcdef", 10_000))
		src, w := io.Pipe()
		r, done := shownUpload(t, c, o, src, in("team"))
		if _, err := w.Write(o.nar[:len(o.nar)-1]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, len(o.nar)-heldBack-1)); err != nil {
			t.Fatalf("read what has arrived: %v", err)
		}
		absent(t, c, "team", o.info.Path)
		rest := make(chan []byte, 1)
		go func() {
			end, err := io.ReadAll(r)
			if err != nil {
				t.Error(err)
			}
			rest <- end
		}()
		synctest.Wait()
		if len(rest) > 0 {
			t.Error("the end came before the upload's")
		}
		if _, err := w.Write(o.nar[len(o.nar)-1:]); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if end := <-rest; !bytes.Equal(end, o.nar[len(o.nar)-heldBack-1:]) {
			t.Errorf("the end has %d bytes", len(end))
		}
		r.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		o.holds(t, c, "team")
	})
}

// Guards against a reader of an upload that sees a wrong one end cleanly.
func TestWrongUploadsNeverEndForTheirReaders(t *testing.T) {
	good := obj("in", strings.Repeat("x", 100_000))
	flipped := bytes.Clone(good.nar)
	flipped[50_000] ^= 1
	lost := errors.New("client lost")
	for name, nar := range map[string]io.Reader{
		"wrong hash": bytes.NewReader(flipped),
		"cut":        bytes.NewReader(good.nar[:len(good.nar)-1]),
		"lost":       io.MultiReader(bytes.NewReader(good.nar[:len(good.nar)-1]), errorReader{lost}),
	} {
		t.Run(name, func(t *testing.T) {
			c := openCache(t, Options{Dir: newDir(t)})
			r, done := shownUpload(t, c, good, nar, in("team"))
			defer r.Close()
			if got, err := io.ReadAll(r); err == nil || len(got) > len(good.nar)-heldBack {
				t.Errorf("the reader got %d of %d bytes and the end %v", len(got), len(good.nar), err)
			}
			if err := <-done; err == nil {
				t.Error("the upload was taken")
			}
		})
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// Guards against a builder that gets other bytes of a path than its domain has: of
// two uploads the first one that is whole wins, and the other one never ends.
func TestUploadThatComesSecondNeverEndsForItsReaders(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	first, second := obj("in", "first"), obj("in", "other bytes")
	src, w := io.Pipe()
	r, done := shownUpload(t, c, second, src, in("team"))
	defer r.Close()
	first.mustBe(t, Added, first.receive(t, c, in("team")))
	if _, err := w.Write(second.nar); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if got, err := io.ReadAll(r); !errors.Is(err, errOtherBytes) || len(got) > len(second.nar)-heldBack {
		t.Errorf("the reader got %d of %d bytes and the end %v", len(got), len(second.nar), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	shown := false
	if _, err := c.ReceiveShown(t.Context(), first.info, bytes.NewReader(first.nar), in("team"), func(*Growing) { shown = true }); err != nil || shown {
		t.Errorf("a path that is valid: shown %v, %v", shown, err)
	}
}
