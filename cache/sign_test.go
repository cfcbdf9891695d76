package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nixbastion/internal/nix"
)

func wantSigs(t *testing.T, c *Cache, domain string, o object, want ...string) {
	t.Helper()
	info, err := c.QueryPathInfo(domain, o.info.Path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, sig := range info.Sigs {
		got = append(got, sig.Name())
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s in %q is signed by %q, want %q", o.info.Path.Name(), domain, got, want)
	}
}

func sigsBy(names ...string) []nix.Signature {
	var sigs []nix.Signature
	for _, name := range names {
		_, sig, _ := strings.Cut(signatureText, ":")
		sigs = append(sigs, mustSig(name+":"+sig))
	}
	return sigs
}

// Guards against signatures that are forgotten, that replace others, or that
// another domain gets to see, and against a path that they make unreadable.
func TestAddedSignaturesStay(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("out", "content")
	o.info.Sigs = sigsBy("own")
	for _, domain := range []string{"one", "two"} {
		o.receive(t, c, in(domain)) // not durable yet
	}
	for _, name := range []string{"a", "b", "a"} {
		if err := c.AddSignatures(t.Context(), o.info, sigsBy(name), Grant{Domain: "one", Provenance: Signed}); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		wantSigs(t, c, "one", o, "a", "b", "own")
		wantSigs(t, c, "two", o, "own")
		wantProvenance(t, c, "one", o.info.Path, Signed)
		wantProvenance(t, c, "two", o.info.Path, Claimed)
		o.holds(t, c, "one")
	}
	check()
	if s := c.Stats(); s.Paths != 2 || s.Bytes != cost(o.info.NarSize) {
		t.Errorf("stats %+v", s)
	}
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir})
	check()
	closeCache(t, c)
	if err := os.Remove(filepath.Join(dir, indexName)); err != nil {
		t.Fatal(err)
	}
	c = openCache(t, Options{Dir: dir})
	check()
	err := c.AddSignatures(t.Context(), obj("absent", "x").info, sigsBy("a"), in("one"))
	if !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("a path that is not valid: %v", err)
	}
}

// Guards against a signature for bytes that never came.
func TestSignaturesOfAnArrivingPathWaitForIt(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	good, lost := obj("good", "content"), obj("lost", "content")
	for _, o := range []object{good, lost} {
		a := announced(t, c, o, in("team"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.AddSignatures(ctx, o.info, sigsBy("a"), in("team")); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: did not wait: %v", o.info.Path.Name(), err)
		}
		done := make(chan error)
		go func() { done <- c.AddSignatures(t.Context(), o.info, sigsBy("a"), in("team")) }()
		var want error
		if o.info == lost.info {
			a.Abort(nil)
			want = nix.ErrNotFound
		} else if _, err := a.Fill(t.Context(), bytes.NewReader(o.nar)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", o.info.Path.Name(), err, want)
		}
	}
	wantSigs(t, c, "team", good, "a")
}

// Guards against a signature of bytes that were announced and never came, which counts
// for others that were uploaded under their path: a builder that lies could so have
// anything believed, by everybody.
func TestSignaturesCountForTheBytesThatTheyCover(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	honest, evil := obj("out", "honest"), obj("out", "evil")
	a := announced(t, c, honest, in("one"))
	info, err := c.QueryPathInfo("one", honest.info.Path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- c.AddSignatures(t.Context(), info, sigsBy("trusted"), Grant{Domain: "one", Public: true, Provenance: Signed})
	}()
	a.Abort(nil)
	evil.receive(t, c, in("one"))
	if err := <-done; !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	for _, sigs := range [][]nix.Signature{sigsBy("trusted"), nil} {
		err := c.AddSignatures(t.Context(), honest.info, sigs, Grant{Domain: "one", Public: true, Provenance: Signed})
		if !errors.Is(err, nix.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	}
	wantSigs(t, c, "one", evil)
	wantProvenance(t, c, "one", evil.info.Path, Claimed)
	absent(t, c, "two", evil.info.Path)
}
