package cache

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"nixbastion/internal/nix"
)

// Guards against bytes that change under those who built from them: the first
// ones of a path stay, and later ones are read to their end, not refused.
func TestFirstBytesOfAPathWin(t *testing.T) {
	for _, durable := range []bool{false, true} {
		dir := newDir(t)
		c := openCache(t, Options{Dir: dir})
		first, second := obj("out", "first"), obj("out", "second")
		first.mustBe(t, Added, first.receive(t, c, in("team")))
		if durable {
			flushed(t, c)
		}
		stream := bytes.NewReader(second.nar)
		outcome, err := c.Receive(t.Context(), second.info, stream, Grant{Domain: "team", Provenance: Signed})
		if err != nil || outcome != Differs || stream.Len() != 0 {
			t.Errorf("second upload: %v, %v, %d bytes unread", outcome, err, stream.Len())
		}
		if _, err := c.Receive(t.Context(), second.info, bytes.NewReader(first.nar), in("team")); err == nil {
			t.Error("what differs is not verified")
		}
		first.mustBe(t, AlreadyValid, first.receive(t, c, in("team")))
		first.holds(t, c, "team")
		wantProvenance(t, c, "team", first.info.Path, Claimed)
		flushed(t, c)
		wantFiles(t, dir, narSuffix, 1)
		wantFiles(t, filepath.Join(dir, c.scratch.dir), "", 0)
		if s := c.Stats(); s.Added != 1 || s.Differing != 1 || s.Paths != 1 || s.Bytes != cost(first.info.NarSize) {
			t.Errorf("stats: %+v", s)
		}
	}
}

// Guards against a proof that is lost because somebody uploaded the same bytes
// without one before, and against one that a mere claim takes away.
func TestBetterProvenanceOfTheSameBytesUpgrades(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("out", "content")
	o.receive(t, c, in("team"))
	flushed(t, c)
	for _, step := range []struct{ given, want Provenance }{
		{DomainVouched, DomainVouched}, {Claimed, DomainVouched}, {Signed, Signed}, {Built, Signed},
	} {
		o.mustBe(t, AlreadyValid, o.receive(t, c, Grant{Domain: "team", Provenance: step.given}))
		wantProvenance(t, c, "team", o.info.Path, step.want)
		flushed(t, c)
		wantProvenance(t, c, "team", o.info.Path, step.want)
	}
	signed := object{info: o.info.Clone(), nar: o.nar}
	signed.info.Sigs = []nix.Signature{mustSig(signatureText)}
	signed.mustBe(t, AlreadyValid, signed.receive(t, c, in("team")))
	closeCache(t, c)

	c = openCache(t, Options{Dir: dir})
	wantProvenance(t, c, "team", o.info.Path, Signed)
	if info, err := c.QueryPathInfo("team", o.info.Path); err != nil || len(info.Sigs) != 1 {
		t.Errorf("further signatures: %+v, %v", info, err)
	}
	o.holds(t, c, "team")
	wantFiles(t, dir, narinfoSuffix, 1)
}

// Guards against a build that waits for ever, or a double delivery, when a
// client uploads what a builder is about to bring.
func TestUploadMeetsAnArrivalOfTheSameBytes(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	a := announced(t, c, o, Grant{Domain: "team", Provenance: DomainVouched})
	o.mustBe(t, Added, o.receive(t, c, in("team"))) // it is the first to be verified
	if outcome, err := a.Fill(t.Context(), bytes.NewReader(o.nar)); err != nil || outcome != AlreadyValid {
		t.Errorf("fill: %v, %v", outcome, err)
	}
	flushed(t, c)
	o.holds(t, c, "team")
	wantProvenance(t, c, "team", o.info.Path, DomainVouched)
}

// Guards against an acknowledged upload that vanishes: the bytes of a path that
// was merely announced are no reason to throw verified ones away.
func TestUploadOutlivesAFailedArrival(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	a := announced(t, c, o, in("team"))
	o.receive(t, c, in("team"))
	a.Abort(errors.New("builder lost"))
	o.holds(t, c, "team")
	flushed(t, c)
	o.holds(t, c, "team")
}

// Guards against two answers for one path: while other bytes were announced,
// only their end tells which ones are the first.
func TestUploadOfOtherBytesWaitsForTheArrival(t *testing.T) {
	for name, builderFails := range map[string]bool{"builder delivers": false, "builder fails": true} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			synctest.Test(t, func(t *testing.T) {
				c := openCache(t, Options{Dir: dir})
				built, other := obj("out", "built"), obj("out", "uploaded")
				a := announced(t, c, built, in("team"))
				uploaded := make(chan Outcome)
				go func() {
					outcome, err := c.Receive(t.Context(), other.info, bytes.NewReader(other.nar), in("team"))
					if err != nil {
						t.Error(err)
					}
					uploaded <- outcome
				}()
				synctest.Wait()
				select {
				case outcome := <-uploaded:
					t.Fatalf("the upload did not wait: %v", outcome)
				default:
				}
				wins, want := built, Differs
				if builderFails {
					wins, want = other, Added
					a.Abort(errors.New("lost"))
				} else if _, err := a.Fill(t.Context(), bytes.NewReader(built.nar)); err != nil {
					t.Error(err)
				}
				if outcome := <-uploaded; outcome != want {
					t.Errorf("got %v, want %v", outcome, want)
				}
				wins.holds(t, c, "team")
			})
		})
	}
}

// Guards against a NAR that is stored once per domain, and against one that goes
// while a narinfo still names it.
func TestEqualBytesAreStoredOnceAndGoWithTheLastName(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	content := strings.Repeat("shared", 10_000)
	a, b := obj("a", content), obj("b", content)
	a.mustBe(t, Added, a.receive(t, c, in("one")))
	a.mustBe(t, Added, a.receive(t, c, in("two")))
	b.mustBe(t, Added, b.receive(t, c, in("two")))
	flushed(t, c)
	wantFiles(t, dir, narSuffix, 1)
	wantFiles(t, dir, narinfoSuffix, 3)
	if s := c.Stats(); s.Bytes != cost(a.info.NarSize) || s.Paths != 3 {
		t.Errorf("stats: %+v", s)
	}
	for i, k := range []key{keyOf("one", a.info.Path), keyOf("two", a.info.Path), keyOf("two", b.info.Path)} {
		c.keeper.do(func() {
			if err := c.keeper.remove([]key{k}, nil); err != nil {
				t.Error(err)
			}
		})
		wantFiles(t, dir, narinfoSuffix, 2-i)
		wantFiles(t, dir, narSuffix, min(1, 2-i))
		if i == 0 {
			absent(t, c, "one", a.info.Path)
			a.holds(t, c, "two")
		}
	}
	if s := c.Stats(); s.Bytes != 0 || s.Paths != 0 {
		t.Errorf("stats: %+v", s)
	}
}
