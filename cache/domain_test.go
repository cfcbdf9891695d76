package cache

import (
	"bytes"
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
