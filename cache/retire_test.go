package cache

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nixbastion/internal/nix"
)

func retire(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Retire(t.Context()); err != nil {
		t.Fatalf("retire: %v", err)
	}
}

// alone waits until no predecessor is left.
func alone(t testing.TB, c *Cache) {
	t.Helper()
	for c.predecessors.some.Load() {
		time.Sleep(time.Millisecond)
	}
}

// Guards against paths that are lost between two processes: what the old one has
// and what it takes in after it gave the index away must be valid in the new one as
// soon as the client has its answer, and outlive both.
func TestWhatARetiredCacheTakesInIsAdopted(t *testing.T) {
	dir := newDir(t)
	old := openCache(t, Options{Dir: dir})
	before := obj("before", "1")
	before.receive(t, old, in("team"))
	retire(t, old)

	next := openCache(t, Options{Dir: dir})
	before.holds(t, next, "team")
	before.holds(t, old, "team")

	small := obj("small", "2", before.info.Path)
	large := obj("large", strings.Repeat("x", syncAlone+1))
	public := obj("public", "3")
	absent(t, next, "team", small.info.Path)
	small.receive(t, old, in("team"))
	small.holds(t, next, "team")
	absent(t, next, "others", small.info.Path)
	large.receive(t, old, in("team"))
	large.holds(t, next, "team")
	public.receive(t, old, Grant{Domain: "team", Provenance: Signed, Public: true})
	public.holds(t, next, "others")
	wantProvenance(t, next, "team", public.info.Path, Signed)
	a, err := old.Announce(obj("output", "4").info, in("team"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Fill(t.Context(), bytes.NewReader(obj("output", "4").nar)); err != nil {
		t.Fatal(err)
	}
	obj("output", "4").holds(t, next, "team")

	theirs := obj("theirs", "5", small.info.Path)
	theirs.receive(t, next, in("team"))
	flushed(t, next)
	theirs.holds(t, old, "team")
	all := []object{before, small, large, public, theirs, obj("output", "4")}
	for _, o := range all {
		o.holds(t, old, "team")
	}

	closeCache(t, old)
	alone(t, next)
	if got := filesIn(t, filepath.Join(dir, tmpDir), ""); len(got) > 1+2*int(next.Stats().Arriving) {
		t.Errorf("temporary files stay: %q", got)
	}
	flushed(t, next)
	closeCache(t, next)
	last := openCache(t, Options{Dir: dir})
	if last.index.incomplete {
		t.Error("the index of two closed caches counts as incomplete")
	}
	for _, o := range all {
		o.holds(t, last, "team")
	}
}

// Guards against a path that a session of the old process was promised, before or
// after it gave the index away, and that the new process evicts; and against
// promises that outlive their process.
func TestPromisesOfARetiredCacheHold(t *testing.T) {
	dir := newDir(t)
	size := int64(40 * unit)
	old := openCache(t, Options{Dir: dir, Size: size})
	pinned, asked, other := obj("pinned", "1"), obj("asked", "2"), obj("other", "3")
	for _, o := range []object{pinned, asked, other} {
		o.receive(t, old, in("team"))
	}
	pins := old.NewPins("anna")
	pins.Pin("team", []nix.StorePath{pinned.info.Path})
	retire(t, old)
	next := openCache(t, Options{Dir: dir, Size: size})
	if got := pins.QueryValidPaths("team", []nix.StorePath{asked.info.Path, pathNamed("never")}); len(got) != 1 {
		t.Fatalf("valid: %v", got)
	}
	filler(t, next, "f", 50)
	flushed(t, next)
	for next.Stats().Evictions == 0 || next.room.excess() > 0 {
		time.Sleep(time.Millisecond)
	}
	for _, o := range []object{pinned, asked} {
		o.holds(t, next, "team")
		o.holds(t, old, "team")
	}
	absent(t, next, "team", other.info.Path)
	absent(t, old, "team", other.info.Path)
	if _, err := next.Remove(t.Context(), "team", []nix.StorePath{asked.info.Path}, false); err == nil {
		t.Error("an admin removed what the old process has promised")
	}
	pins.Release()
	closeCache(t, old)
	alone(t, next)
	if _, err := next.Remove(t.Context(), "team", []nix.StorePath{asked.info.Path}, false); err != nil {
		t.Errorf("after the end of the old process: %v", err)
	}
}

// Guards against the one moment in which both may decide: the old process promises
// a path that the new one has claimed for eviction.
func TestAPromiseBetweenClaimAndEvictionHolds(t *testing.T) {
	dir := newDir(t)
	old := openCache(t, Options{Dir: dir})
	o, gone := obj("o", "1"), obj("gone", "2")
	o.receive(t, old, in("team"))
	gone.receive(t, old, in("team"))
	retire(t, old)
	next := openCache(t, Options{Dir: dir})
	var plan eviction
	next.keeper.do(func() {
		plan = next.keeper.plan(1 << 40)
		o.holds(t, old, "team") // after the claim, before the narinfo is taken away
		if err := next.keeper.carryOut(plan); err != nil {
			t.Error(err)
		}
	})
	if len(plan.victims) != 2 {
		t.Fatalf("planned: %v", plan.victims)
	}
	o.holds(t, old, "team")
	o.holds(t, next, "team")
	absent(t, old, "team", gone.info.Path)
	absent(t, next, "team", gone.info.Path)
}

// Guards against a narinfo that is lost with a process that was killed while it was
// about to evict: its row is there, and a session may have been promised it.
func TestNarinfosOfAnUndecidedEvictionArePutBack(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	o := obj("o", "1")
	o.receive(t, c, in("team"))
	flushed(t, c)
	scanned(t, c)
	closeCache(t, c)
	k := keyOf("team", o.info.Path)
	if err := os.MkdirAll(filepath.Join(dir, "tmp/77"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, k.narinfoName()), filepath.Join(dir, "tmp/77", asidePrefix+k.flatName())); err != nil {
		t.Fatal(err)
	}
	c = openCache(t, Options{Dir: dir})
	if _, err := os.Lstat(filepath.Join(dir, k.narinfoName())); err != nil {
		t.Error(err)
	}
	o.holds(t, c, "team")
}

// Guards against a failed upgrade that costs paths: if the new process does not
// start, the old one takes the index back with all that it took in meanwhile.
func TestReclaimTakesBackWhatWasOffered(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		dir := newDir(t)
		old := openCache(t, Options{Dir: dir, ScrubRate: 1 << 20})
		before, offered, after := obj("before", "1"), obj("offered", "2"), obj("after", "3")
		before.receive(t, old, in("team"))
		retire(t, old)
		offered.receive(t, old, in("team"))
		if adopted {
			next := openCache(t, Options{Dir: dir})
			offered.holds(t, next, "team")
			closeCache(t, next)
		}
		if err := old.Reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
		after.receive(t, old, in("team"))
		flushed(t, old)
		scanned(t, old)
		for _, o := range []object{before, offered, after} {
			o.holds(t, old, "team")
		}
		if s := old.Stats(); s.Paths != 3 || s.Arriving != 0 || s.Bytes != 3*cost(before.info.NarSize) {
			t.Errorf("stats: %+v", s)
		}
		wantFiles(t, filepath.Join(dir, tmpDir), "", 1) // our lock
		if all, err := old.QueryAllValidPaths(t.Context(), "team"); err != nil || len(all) != 3 {
			t.Errorf("all paths: %v, %v", all, err)
		}
		retire(t, old) // once more
		next := openCache(t, Options{Dir: dir})
		for _, o := range []object{before, offered, after} {
			o.holds(t, next, "team")
		}
		closeCache(t, old)
		closeCache(t, next)
	}
}

// Guards against a retired process that does what only the owner of the index may,
// or waits for ever because it may not.
func TestARetiredCacheRefusesWhatNeedsTheIndex(t *testing.T) {
	dir := newDir(t)
	old := openCache(t, Options{Dir: dir})
	o := obj("o", "1")
	o.receive(t, old, in("team"))
	retire(t, old)
	if err := old.Retire(t.Context()); !errors.Is(err, errRetired) {
		t.Errorf("retire twice: %v", err)
	}
	_, err := old.QueryAllValidPaths(t.Context(), "team")
	refusedWith(t, err, "was upgraded")
	refusedWith(t, old.PinPaths("team", []nix.StorePath{o.info.Path}), "was upgraded")
	old.keeper.evictSoon()
	o.holds(t, old, "team")
}

// Guards against races between sessions of the old process and the give-away: what
// was acknowledged or promised is there afterwards, in both, while the new process
// evicts all the time.
func TestSessionsGoOnDuringRetirement(t *testing.T) {
	dir := newDir(t)
	size := int64(200 * unit)
	old := openCache(t, Options{Dir: dir, Size: size})
	var olds, news sync.WaitGroup
	var rounds atomic.Int64
	stop := make(chan struct{})
	for n := range 3 {
		olds.Go(func() { // a few rounds before, during and after
			for round := 0; round < 3 && !t.Failed(); round++ {
				session(t, old, fmt.Sprint("s", n, "-", round))
				rounds.Add(1)
			}
		})
	}
	for rounds.Load() == 0 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	retire(t, old)
	next := openCache(t, Options{Dir: dir, Size: size})
	for n := range 2 {
		news.Go(func() {
			for round := 0; !isClosed(stop) && !t.Failed(); round++ {
				session(t, next, fmt.Sprint("n", n, "-", round))
			}
		})
	}
	olds.Wait()
	for next.Stats().Evictions < 20 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	news.Wait()
	closeCache(t, old)
	alone(t, next)
	flushed(t, next)
	for next.room.excess() > 0 { // what the old process kept may go now
		next.keeper.evictSoon()
		time.Sleep(time.Millisecond)
	}
	next.keeper.do(func() {})
	for _, k := range allRows(t, next) {
		wholeRow(t, next, k)
	}
	if s := next.Stats(); s.Evictions == 0 || s.Broken+s.Corrupt+s.Unpublished > 0 {
		t.Errorf("stats: %+v", s)
	}
	closeCache(t, next)
}

// session uploads paths that refer to each other, as a client does, and reads what
// it was promised.
func session(t *testing.T, c *Cache, prefix string) {
	pins := c.NewPins(prefix)
	defer pins.Release()
	var mine []object
	for i := range 10 {
		var refs []nix.StorePath
		if i > 0 {
			refs = append(refs, mine[i-1].info.Path)
		}
		o := obj(fmt.Sprintf("%s-%d", prefix, i), strings.Repeat("x", rand.IntN(9000)), refs...)
		o.receive(t, c, in("team"))
		if got := pins.Pin("team", []nix.StorePath{o.info.Path}); len(got) != 1 {
			t.Errorf("%s is gone right after its upload", o.info.Path.Name())
			return
		}
		mine = append(mine, o)
	}
	for _, o := range mine {
		o.holds(t, c, "team")
	}
}

// Guards against paths that are lost since nobody was there to adopt them when the
// process ended that took them in.
func TestWhatNobodyAdoptedIsAdoptedAtTheNextStart(t *testing.T) {
	dir := newDir(t)
	old := openCache(t, Options{Dir: dir})
	o, late := obj("o", "1"), obj("late", "2")
	o.receive(t, old, in("team"))
	retire(t, old)
	late.receive(t, old, Grant{Domain: "team", Provenance: Signed, Public: true})
	closeCache(t, old)
	next := openCache(t, Options{Dir: dir})
	o.holds(t, next, "team")
	late.holds(t, next, "others")
	alone(t, next)
	flushed(t, next)
	wantFiles(t, filepath.Join(dir, tmpDir), "", 1) // our lock
}

// Guards against a path that is lost since a cache took it over when it was closing: the
// next one adopts what this one leaves.
func TestACacheThatClosesLeavesOffersToTheNext(t *testing.T) {
	dir := newDir(t)
	old := openCache(t, Options{Dir: dir})
	retire(t, old)
	next := openCache(t, Options{Dir: dir})
	next.endBackground() // so that nobody adopts but who is told to
	o := obj("o", "1")
	o.receive(t, old, in("team"))
	next.beginClose()
	if next.adoptOffers() {
		t.Error("adopted by a cache that closes")
	}
	next.mu.Lock()
	next.closed = false
	next.mu.Unlock()
	closeCache(t, next)
	last := openCache(t, Options{Dir: dir})
	o.holds(t, last, "team")
}

// Guards against a proxy that ends when an upgrade fails, against a path that is lost, or
// counted twice, since it came in while the index was given away and taken back, and against
// an index that is never given away since there is always somebody who queues.
func TestSessionsGoOnWhileTheIndexIsTakenBack(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir})
	stop := make(chan struct{})
	var sessions sync.WaitGroup
	var mu sync.Mutex
	var all []object
	for n := range 4 {
		sessions.Go(func() {
			for i := 0; !isClosed(stop) && !t.Failed(); i++ {
				o := obj(fmt.Sprintf("s%d-%d", n, i), strings.Repeat(fmt.Sprint(n, "-", i), 100))
				o.receive(t, c, in("team"))
				mu.Lock()
				all = append(all, o)
				mu.Unlock()
			}
		})
	}
	for range 4 {
		retire(t, c)
		if err := c.Reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	sessions.Wait()
	flushed(t, c)
	scanned(t, c)
	var want int64
	for _, o := range all {
		o.holds(t, c, "team")
		want += cost(o.info.NarSize)
	}
	if s := c.Stats(); s.Bytes != want || s.Paths != int64(len(all)) || s.Unpublished > 0 {
		t.Errorf("%d paths of %d bytes: %+v", len(all), want, s)
	}
}

// Guards against paths that are never signed with a new key: the process that took them in
// did not know it, and the pass over what is there was over when they came.
func TestWhatIsAdoptedIsSignedWithTheKeysOfWhoAdopts(t *testing.T) {
	dir := newDir(t)
	before, after := newKeyring("team"), newKeyring("team")
	before.share, after.share = "team", "team"
	after.use("team", "team-1", "team-2")
	old := openCache(t, Options{Dir: dir, Sign: before.sign})
	retire(t, old)
	next := openCache(t, Options{Dir: dir, Sign: after.sign})
	o, public := obj("o", "1"), obj("public", "2")
	o.receive(t, old, Grant{Domain: "team", Provenance: DomainVouched})
	public.receive(t, old, Grant{Domain: "team", Provenance: DomainVouched, Public: true})
	after.wantSignedBy(t, next, "team", o, "team-1", "team-2")
	after.wantSignedBy(t, next, "team", public, "team-1", "team-2")
	after.wantSignedBy(t, next, "others", public, "team-1", "team-2")
	flushed(t, next)
	narinfoHas(t, dir, "team", o, "team-2", true)
}

// Guards against a path that is lost since what is offered could not be read for a moment,
// as when there are too many open files, and against offers that make no sense and stay.
func TestAnOfferThatCannotBeReadNowIsTriedAgain(t *testing.T) {
	dir := newDir(t)
	old := openCache(t, Options{Dir: dir})
	retire(t, old)
	next := openCache(t, Options{Dir: dir})
	next.endBackground() // so that nobody adopts but who is told to
	o, bad := obj("o", "1"), obj("bad", "2")
	o.receive(t, old, in("team"))
	bad.receive(t, old, in("team"))
	offers, err := filepath.Glob(filepath.Join(dir, old.scratch.dir, outDir, "*"))
	if err != nil || len(offers) != 2 {
		t.Fatal(offers, err)
	}
	narinfo := filepath.Join(offers[0], keyOf("team", o.info.Path).flatName())
	if err := errors.Join(os.Rename(narinfo, filepath.Join(dir, "kept")), os.Mkdir(narinfo, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(offers[1], offeredNAR), 1); err != nil {
		t.Fatal(err)
	}
	if next.adoptOffers() {
		t.Error("adopted what cannot be read")
	}
	if _, err := os.Lstat(offers[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what makes no sense stays: %v", err)
	}
	if err := errors.Join(os.Remove(narinfo), os.Rename(filepath.Join(dir, "kept"), narinfo)); err != nil {
		t.Fatal(err)
	}
	o.holds(t, next, "team")
}
