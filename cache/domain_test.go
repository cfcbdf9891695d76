package cache

import (
	"bytes"
	"errors"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a domain that learns from another what it never had: by a
// query, a pin, a NAR, a reference, or an upload that is cut short because the
// bytes are here already.
func TestPossessionInOneDomainIsNoAnswerInAnother(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	secret := obj("secret", "secret")
	arriving := obj("arriving", "arriving")
	secret.receive(t, c, Grant{Domain: "one", Provenance: Built})
	announced(t, c, arriving, in("one")).Abort(nil)
	a := announced(t, c, arriving, in("one"))
	defer a.Abort(nil)
	for range 2 { // in memory, then on disk
		absent(t, c, "two", secret.info.Path)
		absent(t, c, publicDomain, secret.info.Path)
		absent(t, c, "two", arriving.info.Path)
		user := obj("user", "user", secret.info.Path)
		_, err := c.Receive(t.Context(), user.info, bytes.NewReader(user.nar), in("two"))
		refusedWith(t, err, "which is not valid")
		flushed(t, c)
	}
	other, err := c.Announce(arriving.info, in("two"))
	if err != nil || !other.Needed() {
		t.Errorf("the announcement of one is an answer in two: %v", err)
	}
	other.Abort(nil)

	stream := bytes.NewReader(secret.nar[:len(secret.nar)-8])
	if _, err := c.Receive(t.Context(), secret.info, stream, in("two")); err == nil || stream.Len() != 0 {
		t.Error("knowing hash and size of another domain's bytes was enough")
	}
	absent(t, c, "two", secret.info.Path)
	secret.mustBe(t, Added, secret.receive(t, c, in("two")))
	wantProvenance(t, c, "two", secret.info.Path, Claimed)
	wantProvenance(t, c, "one", secret.info.Path, Built)
}

// Guards against one domain's bytes deciding what another's path is.
func TestDomainsHoldTheirOwnBytesOfAPath(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	one, two, public := obj("out", "one"), obj("out", "two"), obj("out", "public")
	one.mustBe(t, Added, one.receive(t, c, in("one")))
	two.mustBe(t, Added, two.receive(t, c, in("two")))
	public.mustBe(t, Added, public.receive(t, c, Grant{Domain: "three", Public: true, Provenance: Signed}))
	for range 2 {
		one.holds(t, c, "one")
		two.holds(t, c, "two")
		public.holds(t, c, "three")
		public.holds(t, c, "four")
		flushed(t, c)
	}
	one.mustBe(t, Differs, one.receive(t, c, in("four"))) // which sees the public ones
	two.mustBe(t, AlreadyValid, two.receive(t, c, Grant{Domain: "two", Public: true, Provenance: Signed}))
	public.holds(t, c, publicDomain) // another's public path stays as it is
	if s := c.Stats(); s.Differing != 1 {
		t.Errorf("stats: %+v", s)
	}
}

// Guards against a grant for everybody that does not reach the bytes which the
// domain holds already.
func TestLaterGrantMakesAPathPublic(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	o.receive(t, c, in("one"))
	flushed(t, c)
	o.mustBe(t, AlreadyValid, o.receive(t, c, Grant{Domain: "one", Public: true, Provenance: Signed}))
	o.holds(t, c, "two")
	flushed(t, c)
	o.holds(t, c, "two")
	if info, err := c.QueryPathInfo("two", o.info.Path); err != nil || info.Ultimate {
		t.Errorf("info %+v, %v", info, err)
	}
	var none nix.StorePath
	_, err := c.Receive(t.Context(), &nix.PathInfo{Path: none}, bytes.NewReader(nil), in("one"))
	refusedWith(t, err, "without a path")
}

// Guards against a path that everybody sees although what it refers to is one
// domain's own: whoever fetched it could not use it, and would learn the name.
func TestWhatEverybodySeesIsWhole(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	everybody := Grant{Domain: "one", Public: true, Provenance: Signed}
	own, shared := obj("own", "own"), obj("shared", "shared")
	half, whole := obj("half", "half", own.info.Path, shared.info.Path), obj("whole", "whole", shared.info.Path)
	whole.info.References = nix.SortPaths(append(whole.info.References, whole.info.Path)) // and itself
	own.receive(t, c, Grant{Domain: "one", Provenance: DomainVouched})
	for _, o := range []object{shared, half, whole} {
		o.receive(t, c, everybody)
	}
	for range 2 { // in memory, then on disk
		half.holds(t, c, "one")
		absent(t, c, "two", half.info.Path)
		absent(t, c, "two", own.info.Path)
		shared.holds(t, c, "two")
		whole.holds(t, c, "two")
		flushed(t, c)
	}
	own.receive(t, c, everybody)
	half.mustBe(t, AlreadyValid, half.receive(t, c, everybody))
	half.holds(t, c, "two")
}

// Guards against a claim that everybody gets to see, whatever the caller granted.
func TestClaimsAreNeverPublic(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	claim, source := obj("claim", "x"), sourceObj("source", "x")
	for _, o := range []object{claim, source} {
		o.receive(t, c, Grant{Domain: "one", Public: true})
	}
	absent(t, c, "two", claim.info.Path)
	source.holds(t, c, "two")
}

// Guards against the name of a derivation that everybody reads, or takes for true,
// because one domain named it.
func TestDeriversStayInTheirDomain(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	o.info.Deriver = pathNamed("secret-plan.drv")
	o.receive(t, c, Grant{Domain: "one", Public: true, Provenance: Signed})
	for range 2 {
		for domain, want := range map[string]nix.StorePath{"one": o.info.Deriver, "two": {}} {
			info, err := c.QueryPathInfo(domain, o.info.Path)
			if err != nil || info.Deriver != want {
				t.Errorf("deriver in %q is %q, %v", domain, info.Deriver, err)
			}
		}
		flushed(t, c)
	}
}

// Guards against a signature for everybody that reaches only the domain which added
// it, and against one that opens what the path refers to.
func TestSignatureThatIsAddedLaterMakesAPathPublic(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	everybody := Grant{Domain: "one", Public: true, Provenance: Signed}
	lib, out := obj("lib", "lib"), obj("out", "out", pathNamed("lib"))
	lib.receive(t, c, in("one"))
	out.receive(t, c, in("one"))
	sign := func(o object, g Grant) {
		t.Helper()
		if err := c.AddSignatures(t.Context(), o.info, sigsBy("public"), g); err != nil {
			t.Fatal(err)
		}
	}
	sign(out, everybody)
	wantSigs(t, c, "one", out, "public")
	absent(t, c, "two", out.info.Path)
	sign(lib, everybody)
	lib.holds(t, c, "two")
	absent(t, c, "two", out.info.Path)
	sign(out, everybody)
	out.holds(t, c, "two")
	wantSigs(t, c, "two", out, "public")
	if err := c.AddSignatures(t.Context(), lib.info, sigsBy("other"), Grant{Domain: "two", Provenance: Signed}); err != nil {
		t.Fatal(err)
	}
	wantSigs(t, c, "two", lib, "other", "public")
	wantSigs(t, c, "three", lib, "public") // another's word is not added to it
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir})
	for _, o := range []object{lib, out} {
		o.holds(t, c, "three")
	}
}

// Guards against an output that is announced, and followed by readers, although its
// path shows already that it cannot be what it says.
func TestPathsThatTheirAddressDoesNotMakeAreNotAnnounced(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	o := obj("out", "content")
	o.info.CA = nix.ContentAddress{Method: nix.NAR, Hash: o.info.NarHash}
	_, err := c.Announce(o.info, in("one"))
	refusedWith(t, err, "claims to be content-addressed but isn't")
	o.info.CA.Method = nix.Flat
	o.info.References = []nix.StorePath{pathNamed("lib")}
	_, err = c.Announce(o.info, in("one"))
	refusedWith(t, err, "references, which its content address")
	absent(t, c, "one", o.info.Path)
}

// Guards against a provenance that is that of other bytes.
func TestInfoAndProvenanceAreOfTheSameBytes(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	one, two := obj("out", "one"), obj("out", "two")
	one.receive(t, c, Grant{Domain: "one", Provenance: Built})
	two.receive(t, c, in("two"))
	for domain, want := range map[string]Provenance{"one": Built, "two": Claimed} {
		info, got, err := c.QueryVouched(domain, one.info.Path)
		if err != nil || got != want || (info.NarHash == one.info.NarHash) != (domain == "one") {
			t.Errorf("in %q: %v, %v, %v", domain, info, got, err)
		}
	}
	if _, _, err := c.QueryVouched("three", one.info.Path); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
