package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

// narinfoHas checks that the file of a path names a key, or that it does not.
func narinfoHas(t *testing.T, dir, domain string, o object, name string, want bool) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, keyOf(domain, o.info.Path).narinfoName()))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Contains(string(text), "\nSig: "+name+":"); got != want {
		t.Errorf("narinfo of %s in %q names %s: %v, want %v", o.info.Path.Name(), domain, name, got, want)
	}
}

// lastUses are the times by which eviction goes.
func lastUses(t *testing.T, c *Cache) map[key]int64 {
	t.Helper()
	uses := map[key]int64{}
	err := c.index.oldest(func(cand candidate) bool {
		uses[cand.key] = cand.lastUse
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return uses
}

// Guards against old paths that nobody can check once a key was changed, against
// a pass that forgets who else signed or when a path was used, and against one
// that signs what it must not or in another domain.
func TestResignAddsTheSignaturesOfNewKeys(t *testing.T) {
	dir, keys := newDir(t), newKeyring("one", "two")
	keys.share = "one"
	var clock atomic.Int64 // of all uses: one that a pass makes shows
	now := func() time.Time { return time.Unix(clock.Load(), 0) }
	c := openCache(t, Options{Dir: dir, Sign: keys.sign, Now: now})
	var vouched []object
	for i := range signStep + 3 {
		o := obj(fmt.Sprint("out", i), fmt.Sprint("content", i))
		o.info.Sigs = sigsBy("friend")
		o.receive(t, c, Grant{Domain: "one", Provenance: DomainVouched, Public: i == 0})
		vouched = append(vouched, o)
	}
	claimed := obj("claimed", "a claim")
	claimed.receive(t, c, in("one"))
	vouched[1].receive(t, c, Grant{Domain: "two", Provenance: DomainVouched})
	keys.use("one", "one-1", "one-2") // the last of these are not durable yet

	var last SignProgress
	if err := c.Resign(t.Context(), "one", func(p SignProgress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if want := (SignProgress{Seen: int64(len(vouched)) + 1, Signed: int64(len(vouched))}); last != want {
		t.Errorf("progress %+v, want %+v", last, want)
	}
	check := func() {
		t.Helper()
		for _, o := range vouched {
			keys.wantSignedBy(t, c, "one", o, "friend", "one-1", "one-2")
			narinfoHas(t, dir, "one", o, "one-2", true)
		}
		keys.wantSignedBy(t, c, "one", claimed)
		keys.wantSignedBy(t, c, "two", vouched[1], "friend", "two-1")
		keys.wantSignedBy(t, c, "others", vouched[0], "friend", "one-1", "one-2")
	}
	check()
	uses := lastUses(t, c)
	if err := c.Resign(t.Context(), "one", func(p SignProgress) { last = p }); err != nil || last.Signed != 0 {
		t.Errorf("a second pass: %+v, %v", last, err)
	}
	keys.use("one", "one-1", "one-2", "one-3")
	clock.Store(1000)
	if err := c.Resign(t.Context(), "one", nil); err != nil {
		t.Fatal(err)
	}
	for k, use := range lastUses(t, c) {
		if uses[k] != use {
			t.Errorf("%v was used at %d, and at %d before", k, use, uses[k])
		}
	}
	keys.use("one", "one-1", "one-2")
	for _, o := range vouched {
		wantSigs(t, c, "one", o, "friend", "one-1", "one-2", "one-3")
		o.holds(t, c, "one")
	}
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir, Sign: keys.sign}) // which compares the index with itself
	for _, o := range vouched {
		wantSigs(t, c, "one", o, "friend", "one-1", "one-2", "one-3")
	}
}

// Guards against a start that signs a million paths again for nothing, and against
// one that leaves paths out since a pass was cut short, keys were changed and
// changed back, or the index is new.
func TestAPassIsDoneOncePerSetOfKeys(t *testing.T) {
	dir, keys := newDir(t), newKeyring("team")
	open := func() *Cache { return openCache(t, Options{Dir: dir, Sign: keys.sign}) }
	c := open()
	pass := func(ctx context.Context, names string, wantErr error, progress func(SignProgress)) (calls int) {
		t.Helper()
		before := keys.calls()
		if err := c.ResignFor(ctx, "team", names, progress); !errors.Is(err, wantErr) {
			t.Fatalf("pass for %q: %v, want %v", names, err, wantErr)
		}
		return keys.calls() - before
	}
	var all []object
	add := func() {
		o := obj(fmt.Sprint("out", len(all)), fmt.Sprint("content", len(all)))
		o.receive(t, c, Grant{Domain: "team", Provenance: DomainVouched})
		all = append(all, o)
	}
	for range signStep + 1 {
		add()
	}
	pass(t.Context(), "k1", nil, nil)
	closeCache(t, c)
	c = open()
	if calls := pass(t.Context(), "k1", nil, nil); calls != 0 {
		t.Errorf("after a start with the same keys %d paths were looked at", calls)
	}

	keys.use("team", "team-2")
	ctx, cancel := context.WithCancel(t.Context())
	pass(ctx, "k2", context.Canceled, func(SignProgress) { cancel() })
	closeCache(t, c)
	c = open()
	pass(t.Context(), "k2", nil, nil)
	for _, o := range all {
		keys.wantSignedBy(t, c, "team", o, "team-1", "team-2")
	}

	if err := c.KeysChange("team", ""); err != nil {
		t.Fatal(err)
	}
	keys.use("team")
	add()
	closeCache(t, c)
	keys.use("team", "team-2") // another of that name: the old signatures are none
	c = open()
	pass(t.Context(), "k2", nil, nil)
	for _, o := range all[len(all)-1:] {
		keys.wantSignedBy(t, c, "team", o, "team-2")
	}
	if err := c.KeysChange("team", "k2"); err != nil || pass(t.Context(), "k2", nil, nil) != 0 {
		t.Errorf("the same keys are taken for others: %v", err)
	}

	closeCache(t, c)
	if err := os.Remove(filepath.Join(dir, indexName)); err != nil {
		t.Fatal(err)
	}
	c = open()
	if calls := pass(t.Context(), "k2", nil, nil); calls < len(all) {
		t.Errorf("with a new index %d of %d paths were looked at", calls, len(all))
	}
}

// Guards against a path that is signed with the old key, becomes valid behind the
// back of the pass for the new one, and is never looked at again.
func TestAPassWaitsForThoseWhoSignedBeforeIt(t *testing.T) {
	keys := newKeyring("team")
	c := openCache(t, Options{Dir: newDir(t), Sign: keys.sign})
	signing, goOn := make(chan struct{}), make(chan struct{})
	keys.before = func(Verified) { close(signing); <-goOn }
	o := obj("out", "content")
	received := make(chan error)
	go func() {
		_, err := c.Receive(t.Context(), o.info, strings.NewReader(string(o.nar)), Grant{Domain: "team", Provenance: DomainVouched})
		received <- err
	}()
	<-signing
	keys.mu.Lock()
	keys.before = nil
	keys.mu.Unlock()
	keys.use("team", "team-2")
	passed := make(chan error)
	go func() { passed <- c.Resign(t.Context(), "team", nil) }()
	late := obj("late", "which comes meanwhile")
	late.receive(t, c, Grant{Domain: "team", Provenance: DomainVouched})
	select {
	case err := <-passed:
		t.Fatalf("the pass ended (%v) before a path with signatures of the old key was there", err)
	case <-time.After(200 * time.Millisecond):
	}
	close(goOn)
	if err := errors.Join(<-received, <-passed); err != nil {
		t.Fatal(err)
	}
	keys.wantSignedBy(t, c, "team", o, "team-1", "team-2")
	keys.wantSignedBy(t, c, "team", late, "team-2")
}

// Guards against a zero value, which everybody can make, that is worth a signature.
func TestWhatNobodyVerifiedIsAClaim(t *testing.T) {
	var v Verified
	if v.Provenance() != Claimed || v.Domain() != "" || !v.Info().Path.IsZero() {
		t.Errorf("%v of %q in %q", v.Provenance(), v.Info().Path, v.Domain())
	}
	if rec := withOwnSigs(&record{info: &nix.PathInfo{}}, nil); rec.info.Sigs != nil {
		t.Errorf("signatures from nowhere: %v", rec.info.Sigs)
	}
}
