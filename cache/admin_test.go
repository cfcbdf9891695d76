package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

func quiet(Verification) {}

// Guards against a list that leaves out paths, shows those of other domains, or
// does not say what is known of them.
func TestListShowsWhatADomainHas(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Now: ticks()})
	a, b, shared := obj("a", "a"), obj("b", "b"), sourceObj("s", "s")
	a.receive(t, c, in("team"))
	b.receive(t, c, in("others"))
	shared.receive(t, c, Grant{Domain: "team", Public: true, Provenance: Signed})
	if err := c.PinPaths("team", pathsOf(a)); err != nil {
		t.Fatal(err)
	}
	list := func(domain string, all bool) map[string]Entry {
		found := map[string]Entry{}
		if err := c.List(t.Context(), domain, all, func(e Entry) error {
			found[e.Domain+"/"+e.Info.Path.Name()] = e
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return found
	}
	team := list("team", false)
	if len(team) != 2 || !team["team/a"].Pinned || team["team/s"].Pinned || team["team/s"].Provenance != ContentAddressed || team["team/a"].LastUse == 0 {
		t.Errorf("team: %+v", team)
	}
	if all := list("", true); len(all) != 4 || all["/s"].Info == nil || all["others/b"].Info == nil {
		t.Errorf("all: %+v", all)
	}
	if e, err := c.Find(t.Context(), "others", shared.info.Path); err != nil || e.Domain != "" || e.Info.NarHash != shared.info.NarHash {
		t.Errorf("the public path: %+v, %v", e, err)
	}
	if _, err := c.Find(t.Context(), "others", a.info.Path); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("another's path: %v", err)
	}
	stop := errors.New("enough")
	if err := c.List(t.Context(), "", true, func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a reader that has enough: %v", err)
	}
	o, err := c.Overview(t.Context())
	if err != nil || len(o.Domains) != 3 || o.Domains[2] != (DomainOverview{Name: "team", Paths: 2, Bytes: int64(len(a.nar) + len(shared.nar)), Pinned: 1}) {
		t.Errorf("overview: %+v, %v", o, err)
	}
}

// Guards against a verification that says all is well without having looked, and
// one that stops at the first fault.
func TestVerifyNamesWhatIsLost(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	all := filler(t, c, "p", 10)
	v, err := c.Verify(t.Context(), "", nil, quiet)
	if err != nil || v.NARs != 10 || v.Of != 10 || len(v.Lost) != 0 || v.Bytes == 0 {
		t.Errorf("whole store: %+v, %v", v, err)
	}
	rot(t, dir, all[2], 100) // after it was checked: verify looks all the same
	rot(t, dir, all[5], 100)
	if err := os.Remove(narFile(dir, all[8])); err != nil {
		t.Fatal(err)
	}
	v, err = c.Verify(t.Context(), "team", pathsOf(all[1], all[2]), quiet)
	if err != nil || v.NARs != 2 || len(v.Lost) != 1 || v.Lost[0] != (Lost{"team", all[2].info.Path}) {
		t.Errorf("two paths: %+v, %v", v, err)
	}
	v, err = c.Verify(t.Context(), "", nil, quiet)
	if err != nil || len(v.Lost) != 2 || v.NARs != 9 {
		t.Errorf("the rest: %+v, %v", v, err)
	}
	for i, o := range all {
		if i == 2 || i == 5 || i == 8 {
			absent(t, c, "team", o.info.Path)
		} else {
			o.holds(t, c, "team")
		}
	}
	if _, err := c.Verify(t.Context(), "team", pathsOf(all[2]), quiet); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("a path that is not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.Verify(ctx, "", nil, func(Verification) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// Guards against a collection that takes too much, too little, or what is pinned.
func TestCollectStopsAtItsTarget(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t), Size: 100 * unit, Now: ticks()})
	all := filler(t, c, "p", 90)
	if err := c.PinPaths("team", pathsOf(all[0], all[1])); err != nil {
		t.Fatal(err)
	}
	told := int64(0)
	paths, bytes, err := c.Collect(t.Context(), -1, func(n, _ int64) { told = n })
	if err != nil || paths != 5 || bytes != 85*unit || told != 5 {
		t.Errorf("to the watermark: %d paths went, %d bytes stay, %v", paths, bytes, err)
	}
	paths, bytes, err = c.Collect(t.Context(), 10*unit+1, func(n, _ int64) {})
	if err != nil || paths != 75 || bytes != 10*unit {
		t.Errorf("to 10: %d paths went, %d bytes stay, %v", paths, bytes, err)
	}
	paths, bytes, err = c.Collect(t.Context(), 0, func(n, _ int64) {})
	if err != nil || paths != 8 || bytes != 2*unit {
		t.Errorf("to nothing: %d paths went, %d bytes stay, %v", paths, bytes, err)
	}
	if got := validNames(c, all); !slices.Equal(got, []string{"p0", "p1"}) {
		t.Errorf("valid: %q", got)
	}
}

// Guards against the removal of what others need, of what was promised or pinned,
// and of what another domain has; and against one that leaves half.
func TestRemoveTakesWhatNobodyNeeds(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	lib := obj("lib", "lib")
	tool := obj("tool", "tool", lib.info.Path)
	app := obj("app", "app", tool.info.Path, lib.info.Path)
	for _, o := range []object{lib, tool, app} {
		o.receive(t, c, in("team"))
		o.receive(t, c, in("others"))
	}
	remove := func(referrers bool, objects ...object) ([]Lost, error) {
		return c.Remove(t.Context(), "team", pathsOf(objects...), referrers)
	}
	_, err := remove(false, lib)
	refusedWith(t, err, "refers to")
	refusedWith(t, err, "--referrers")
	if gone, err := remove(false, app); err != nil || len(gone) != 1 || gone[0] != (Lost{"team", app.info.Path}) {
		t.Errorf("a leaf: %v, %v", gone, err)
	}
	absent(t, c, "team", app.info.Path)
	app.receive(t, c, in("team"))
	if err := c.PinPaths("team", pathsOf(app)); err != nil {
		t.Fatal(err)
	}
	_, err = remove(true, lib)
	refusedWith(t, err, "is pinned in domain team")
	if err := c.UnpinPaths("team", pathsOf(app)); err != nil {
		t.Fatal(err)
	}
	pins := c.NewPins("alice")
	pins.Pin("team", pathsOf(app))
	_, err = remove(true, lib)
	refusedWith(t, err, "is in use now")
	pins.Release()
	gone, err := remove(true, lib)
	if err != nil || len(gone) != 3 {
		t.Errorf("with referrers: %v, %v", gone, err)
	}
	for _, o := range []object{lib, tool, app} {
		absent(t, c, "team", o.info.Path)
		o.holds(t, c, "others")
	}
	if _, err := remove(false, lib); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
	wantFiles(t, dir, narinfoSuffix, 3)
	wantFiles(t, dir, narSuffix, 3)
}

// Guards against a path that stays visible since it was public too.
func TestRemoveTakesThePublicRecordToo(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	lib := sourceObj("lib", "lib")
	lib.receive(t, c, Grant{Domain: "team", Public: true})
	user := obj("user", "user", lib.info.Path)
	user.receive(t, c, in("others"))
	_, err := c.Remove(t.Context(), "team", pathsOf(lib), false)
	refusedWith(t, err, "refers to")
	gone, err := c.Remove(t.Context(), "team", pathsOf(lib), true)
	if err != nil || len(gone) != 3 {
		t.Errorf("%v, %v", gone, err)
	}
	absent(t, c, "team", lib.info.Path)
	absent(t, c, "others", user.info.Path)
}

// Guards against a removal that never ends over references in a circle, or that is
// slow with many referrers.
func TestRemoveManyAndCircles(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	a, b := obj("a", "a", pathNamed("b")), obj("b", "b", pathNamed("a"))
	for _, o := range []object{a, b} {
		if _, err := announced(t, c, o, in("team")).Fill(t.Context(), bytes.NewReader(o.nar)); err != nil {
			t.Fatal(err)
		}
	}
	flushed(t, c)
	if gone, err := c.Remove(t.Context(), "team", pathsOf(a), true); err != nil || len(gone) != 2 {
		t.Errorf("a circle: %v, %v", gone, err)
	}
	base := obj("base", "base")
	base.receive(t, c, in("team"))
	for i := range 200 {
		obj(fmt.Sprintf("r%d", i), fmt.Sprint(i), base.info.Path).receive(t, c, in("team"))
	}
	began := time.Now()
	gone, err := c.Remove(t.Context(), "team", pathsOf(base), true)
	if err != nil || len(gone) != 201 || gone[200].Path != base.info.Path {
		t.Errorf("%d paths went, %v", len(gone), err)
	}
	if s := c.Stats(); s.Paths != 0 || s.Bytes != 0 || time.Since(began) > 20*time.Second {
		t.Errorf("stats: %+v after %v", s, time.Since(began))
	}
}
