package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/cache"
	"nixbastion/internal/nix"
)

// listed waits until builders list files that were put there.
func (l *lab) listed(files map[*labBuilder][]labFile) {
	l.Helper()
	for b, list := range files {
		for _, f := range list {
			b.put(f)
		}
	}
	l.proxy.lookAtBuilders()
	for b, list := range files {
		for _, f := range list {
			eventually(l.TB, b.name+" lists "+f.info.Path.Name(), func() bool { return l.proxy.pool.Lists(b.name, f.info.Path) })
		}
	}
}

// forget makes builders be asked again.
func (m *misses) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paths.Purge()
	clear(m.rests)
}

// wantAbsent checks that a client is answered, without an error, that there is no
// such path.
func (c *labClient) wantAbsent(t *testing.T, path nix.StorePath) {
	t.Helper()
	c.wantAbsentInfo(t, path)
	if valid, err := c.QueryValidPaths(t.Context(), []nix.StorePath{path}, false); len(valid) > 0 || err != nil {
		t.Errorf("%s: %v, %v", path.Name(), valid, err)
	}
}

func (c *labClient) wantAbsentInfo(t *testing.T, path nix.StorePath) {
	t.Helper()
	if _, err := c.QueryPathInfo(t.Context(), path); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("%s: %v", path.Name(), err)
	}
}

func (c *labClient) wantRead(t *testing.T, path nix.StorePath, want string) {
	t.Helper()
	if got, err := c.read(t.Context(), path); got != want || err != nil {
		t.Errorf("%s: read %q, %v", path.Name(), got, err)
	}
}

// Guards against a path that only a builder has and nobody gets, that is fetched for
// each reader, or that goes with the builder.
func TestPathsOfBuildersAreFoundOnceForAll(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	file := newLabFile(labPath("found"), "text")
	file.info.Deriver = labPath("found.drv")
	l.listed(map[*labBuilder][]labFile{b: {file}})
	var reading sync.WaitGroup
	for _, name := range []string{"alice", "bob", "reader", "reader"} {
		c := l.client(name)
		reading.Go(func() { c.wantRead(t, file.info.Path, "text") })
	}
	reading.Wait()
	b.die()
	late := l.client("bob")
	late.wantRead(t, file.info.Path, "text")
	if info, err := late.QueryPathInfo(t.Context(), file.info.Path); err != nil || info.Deriver != file.info.Deriver {
		t.Errorf("info %+v, %v", info, err)
	}
	if got := b.given(); !slices.Equal(got, []string{"found"}) {
		t.Errorf("the builder gave %q", got)
	}
	if got, err := l.proxy.cache.QueryProvenance("default", file.info.Path); got != cache.DomainVouched || err != nil {
		t.Errorf("vouched for by %v, %v", got, err)
	}
}

// Guards against questions to builders for what none of them has.
func TestNobodyIsAskedForWhatNobodyLists(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	l.listed(map[*labBuilder][]labFile{b: {newLabFile(labPath("found"), "text")}})
	reader := l.client("reader")
	for i := range 1000 {
		reader.wantAbsent(t, labPath(fmt.Sprintf("absent%d", i)))
	}
	if got := b.askedFor(); len(got) > 0 {
		t.Errorf("the builder was asked for %q", got)
	}
}

// Guards against what one domain's builder holds being an answer in another.
func TestOtherDomainsFindNothing(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	file := newLabFile(labPath("found"), "text")
	l.listed(map[*labBuilder][]labFile{b: {file}})
	eve := l.client("eve")
	eve.wantAbsent(t, file.info.Path)
	if got := b.askedFor(); len(got) > 0 {
		t.Errorf("the builder was asked for %q", got)
	}
	l.client("reader").wantRead(t, file.info.Path, "text")
	eve.wantAbsent(t, file.info.Path)
}

// Guards against a builder that plants bytes, and against one bad copy that hides a
// good one.
func TestWrongBytesOfABuilderAreNeverServed(t *testing.T) {
	liar, honest := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, liar, honest)
	good, only := newLabFile(labPath("good"), "good"), newLabFile(labPath("only"), "good")
	forged := func(f labFile) labFile {
		f.nar = newLabFile(f.info.Path, "evil").nar
		return f
	}
	l.listed(map[*labBuilder][]labFile{liar: {forged(good), forged(only)}, honest: {good}})
	reader := l.client("reader")
	reader.wantRead(t, good.info.Path, "good")
	if _, err := reader.QueryPathInfo(t.Context(), only.info.Path); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("a path of which there are only wrong bytes: %v", err)
	}
	if _, err := reader.NarFromPath(t.Context(), only.info.Path); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("its NAR: %v", err)
	}
	if got := liar.given(); !slices.Equal(got, []string{"good", "only"}) {
		t.Errorf("the liar gave %q: each forgery is to be fetched once", got)
	}
	records := l.log.records(t, "listed path was not found")
	if len(records) != 2 || !strings.Contains(l.log.String(), "hash mismatch") {
		t.Errorf("the admin is told:\n%s", l.log)
	}
}

// Guards against a builder that does not answer and has its clients wait, or be told
// of an error, or has all others' answers wait.
func TestSilentBuildersHoldNobodyUp(t *testing.T) {
	b := newLabBuilder("b1")
	b.onInfo = func(ctx context.Context, _ nix.StorePath) { <-ctx.Done() }
	b.mute = true
	l := newLab(t, b)
	one, two := newLabFile(labPath("one"), "text"), newLabFile(labPath("two"), "text")
	l.listed(map[*labBuilder][]labFile{b: {one, two}})
	full, reader := l.client("alice"), l.client("reader")
	for _, ask := range []func(){
		func() { full.wantAbsent(t, one.info.Path) },
		func() { l.proxy.found.misses.forget(); reader.wantAbsent(t, two.info.Path) },
		func() {
			l.proxy.found.misses.forget()
			if valid, err := reader.QueryValidPaths(t.Context(), []nix.StorePath{one.info.Path}, false); len(valid) > 0 || err != nil {
				t.Errorf("valid: %v, %v", valid, err)
			}
		},
	} {
		began := time.Now()
		ask()
		if took := time.Since(began); took > askTimeout+time.Second {
			t.Errorf("answered after %v", took)
		}
	}
	// Who did not answer a moment ago is not asked for the next path.
	began := time.Now()
	for i := range 100 {
		reader.wantAbsent(t, []nix.StorePath{one.info.Path, two.info.Path}[i%2])
	}
	if took := time.Since(began); took > askTimeout+time.Second { // the first may come before that is noted
		t.Errorf("a hundred questions took %v", took)
	}
}

// Guards against a builder that is asked without end for what it listed and has no
// more, and against an answer from then that hides what came since.
func TestWhatABuilderLacksIsRememberedForAMoment(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	gone := newLabFile(labPath("gone"), "text")
	l.listed(map[*labBuilder][]labFile{b: {gone}})
	b.drop(gone.info.Path)
	reader := l.client("reader")
	for range 100 {
		reader.wantAbsent(t, gone.info.Path)
	}
	if got := b.askedFor(); !slices.Equal(got, []string{"gone"}) {
		t.Errorf("asked for %q", got)
	}
	if err := l.client("alice").upload(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	reader.wantRead(t, gone.info.Path, "text")
}

// Guards against memory of what builders lack that stays, or grows.
func TestMissesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMisses()
		key := foundKey{"default", labPath("gone")}
		m.note(key, "b1", nix.ErrNotFound)
		if !m.has(key, "b1") || m.has(key, "b2") || m.has(foundKey{"other", key.path}, "b1") || m.has(foundKey{"default", labPath("else")}, "b1") {
			t.Error("it is not remembered of just this path, builder and domain")
		}
		time.Sleep(missAge)
		if m.has(key, "b1") {
			t.Error("it is remembered for too long")
		}
		m.note(key, "b1", errSlow)
		if !m.has(foundKey{"default", labPath("else")}, "b1") {
			t.Error("a builder that does not answer is asked for the next path")
		}
		time.Sleep(restAge)
		if m.has(foundKey{"default", labPath("else")}, "b1") {
			t.Error("a builder that did not answer once is never asked again")
		}
		for i := range maxMisses + 100 {
			m.note(foundKey{"default", labPath(fmt.Sprintf("p%d", i))}, "b1", nix.ErrNotFound)
		}
		if n := m.paths.Len(); n > maxMisses {
			t.Errorf("%d are remembered", n)
		}
	})
}

// Guards against a fetch that runs on for nobody, and one that ends with the first
// of several readers.
func TestFetchLivesAsLongAsSomebodyWaits(t *testing.T) {
	b := newLabBuilder("b1")
	gate := make(chan struct{})
	given := make(chan context.Context, 2)
	b.onNar = func(ctx context.Context, _ nix.StorePath) {
		given <- ctx
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
	l := newLab(t, b)
	left, shared := newLabFile(labPath("left"), "text"), newLabFile(labPath("shared"), "text")
	l.listed(map[*labBuilder][]labFile{b: {left, shared}})
	fetching := func(path nix.StorePath) int {
		l.proxy.found.mu.Lock()
		defer l.proxy.found.mu.Unlock()
		if found := l.proxy.found.fetches[foundKey{"default", path}]; found != nil {
			return found.readers
		}
		return 0
	}
	query := func(c *labClient, path nix.StorePath) (ended chan error) {
		ended = make(chan error, 1)
		go func() {
			_, err := c.QueryPathInfo(t.Context(), path)
			ended <- err
		}()
		return ended
	}
	alone := l.client("alice")
	query(alone, left.info.Path)
	ctx := <-given
	alone.hangUp()
	eventually(t, "the fetch of the only reader ends", func() bool { return fetching(left.info.Path) == 0 && ctx.Err() != nil })

	first := l.client("alice")
	query(first, shared.info.Path)
	<-given
	second := query(l.client("bob"), shared.info.Path)
	eventually(t, "two wait", func() bool { return fetching(shared.info.Path) == 2 })
	first.hangUp()
	eventually(t, "one waits", func() bool { return fetching(shared.info.Path) == 1 })
	close(gate)
	if err := <-second; err != nil {
		t.Errorf("the one who waited: %v", err)
	}
	if got := b.given(); !slices.Equal(got, []string{"left", "shared"}) {
		t.Errorf("the builder gave %q", got)
	}
}

// Guards against a path whose closure is nowhere, and against one that is kept back
// since its closure was not fetched yet.
func TestFoundPathsHaveTheirClosureInReach(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	lib, here := newLabFile(labPath("lib"), "lib"), newLabFile(labPath("here"), "here")
	tool := newLabFile(labPath("tool"), "tool", lib.info.Path, here.info.Path, labPath("tool"))
	torn := newLabFile(labPath("torn"), "torn", lib.info.Path, labPath("nowhere"))
	if err := l.client("alice").upload(t.Context(), here); err != nil {
		t.Fatal(err)
	}
	l.listed(map[*labBuilder][]labFile{b: {lib, tool, torn}})
	reader := l.client("reader")
	reader.wantRead(t, tool.info.Path, "tool")
	if got := b.given(); !slices.Equal(got, []string{"tool"}) {
		t.Errorf("the builder gave %q: closures are not fetched before somebody asks", got)
	}
	if _, err := reader.QueryPathInfo(t.Context(), torn.info.Path); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("a path of which a reference is nowhere: %v", err)
	}
	reader.wantRead(t, lib.info.Path, "lib")
}

// Guards against found paths beyond the admin's limits.
func TestFoundPathsObeyTheLimits(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	large, huge := newLabFile(labPath("large"), "text"), newLabFile(labPath("huge"), "text")
	large.info.NarSize, huge.info.NarSize = 2<<30, 60<<30 // the cache holds 50 GiB
	l.listed(map[*labBuilder][]labFile{b: {large, huge}})
	limits := &l.proxy.policy.Current().Limits
	reader := l.client("reader")
	reader.wantAbsentInfo(t, huge.info.Path)
	limits.NarSize = 1 << 30
	reader.wantAbsentInfo(t, large.info.Path)
	if got := b.given(); len(got) > 0 {
		t.Errorf("the builder gave %q", got)
	}
}

// Guards against readers who are not told of what a builder holds, or told without
// it being kept there, and against uploads that are left out for a builder's sake.
func TestListedPathsAreValidForReaders(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, b1, b2)
	one, both, gone := newLabFile(labPath("one"), "text"), newLabFile(labPath("both"), "text"), newLabFile(labPath("gone"), "text")
	l.listed(map[*labBuilder][]labFile{b1: {one, both, gone}, b2: {both}})
	b1.drop(gone.info.Path)
	b1.drop(both.info.Path)
	all := nix.SortPaths([]nix.StorePath{one.info.Path, both.info.Path, gone.info.Path, labPath("nowhere")})
	if valid, err := l.client("alice").QueryValidPaths(t.Context(), all, false); len(valid) > 0 || err != nil {
		t.Errorf("valid for who uploads: %v, %v", valid, err)
	}
	reader := l.client("reader")
	valid, err := reader.QueryValidPaths(t.Context(), all, false)
	if want := nix.SortPaths([]nix.StorePath{one.info.Path, both.info.Path}); err != nil || !slices.Equal(nix.SortPaths(valid), want) {
		t.Errorf("valid for a reader: %v, %v", valid, err)
	}
	if rooted := b1.rooted(); !slices.Contains(rooted, "one") {
		t.Errorf("roots on b1: %q", rooted)
	}
	if got := b1.given(); len(got) > 0 {
		t.Errorf("fetched %q", got)
	}
	keepers := func() int {
		l.proxy.found.keepers.mu.Lock()
		defer l.proxy.found.keepers.mu.Unlock()
		return len(l.proxy.found.keepers.all)
	}
	if n := keepers(); n != 2 {
		t.Errorf("paths are kept on %d builders", n)
	}
	reader.wantRead(t, one.info.Path, "text")
	reader.hangUp()
	eventually(t, "nothing is kept for a reader who left", func() bool { return keepers() == 0 })
}

// Guards against clients that together hold all sessions of a builder by asking what
// is valid.
func TestKeepersAreFew(t *testing.T) {
	b := newLabBuilder("b1")
	l := newLab(t, b)
	file := newLabFile(labPath("found"), "text")
	l.listed(map[*labBuilder][]labFile{b: {file}})
	var clients []*labClient
	for range 20 {
		c := l.client("reader")
		clients = append(clients, c)
		if valid, err := c.QueryValidPaths(t.Context(), []nix.StorePath{file.info.Path}, false); len(valid) != 1 || err != nil {
			t.Fatalf("valid: %v, %v", valid, err)
		}
	}
	ks := l.proxy.found.keepers
	ks.mu.Lock()
	if n := len(ks.all["b1"]); n != 1 {
		t.Errorf("twenty readers have %d sessions", n)
	}
	ks.all["b1"][0].paths = maxKept
	ks.mu.Unlock()
	more, err := ks.take("b1", maxKept)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ks.take("b1", 1); !errors.Is(err, errKeepersFull) {
		t.Errorf("a third session: %v", err)
	}
	late := l.client("reader")
	if valid, err := late.QueryValidPaths(t.Context(), []nix.StorePath{file.info.Path}, false); len(valid) > 0 || err != nil {
		t.Errorf("valid though nobody keeps it: %v, %v", valid, err)
	}
	late.wantRead(t, file.info.Path, "text") // it is there all the same
	ks.give(more)
	for _, c := range clients {
		c.hangUp()
	}
}

// Guards against a builder's fetches that take the sessions of builds.
func TestFetchesAtTheSameTimeAreBounded(t *testing.T) {
	b := newLabBuilder("b1")
	var mu sync.Mutex
	now, most := 0, 0
	b.onNar = func(context.Context, nix.StorePath) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(20 * time.Millisecond)
		mu.Lock()
		now--
		mu.Unlock()
	}
	l := newLab(t, b)
	var files []labFile
	for i := range 24 {
		files = append(files, newLabFile(labPath(fmt.Sprintf("found%d", i)), "text"))
	}
	l.listed(map[*labBuilder][]labFile{b: files})
	var reading sync.WaitGroup
	for i, f := range files {
		c := l.client([]string{"alice", "bob", "reader"}[i%3])
		reading.Go(func() { c.wantRead(t, f.info.Path, "text") })
	}
	reading.Wait()
	if most > maxFetches {
		t.Errorf("%d at the same time", most)
	}
}

// Guards against an error to a query because of what a builder says, and against a
// build's path that is taken for found while it is arriving.
func TestErrorsOfBuildersAreMisses(t *testing.T) {
	b := newLabBuilder("b1")
	b.infoError = nix.Refuse("disk I/O error")
	l := newLab(t, b)
	file := newLabFile(labPath("found"), "text")
	l.listed(map[*labBuilder][]labFile{b: {file}})
	l.client("reader").wantAbsentInfo(t, file.info.Path)
	if !strings.Contains(l.log.String(), "disk I/O error") {
		t.Errorf("the admin is told:\n%s", l.log)
	}
	b.die()
	l.proxy.found.misses.forget()
	l.client("reader").wantAbsentInfo(t, file.info.Path)
}

// Guards against inputs that are sent to one builder when another has them.
func TestBuildsGoWhereTheirInputsAreListed(t *testing.T) {
	b1, b2 := newLabBuilder("b1"), newLabBuilder("b2")
	l := newLab(t, b1, b2)
	input := newLabFile(labPath("input"), "text")
	l.listed(map[*labBuilder][]labFile{b1: nil, b2: {input}})
	alice := l.client("alice")
	if err := alice.upload(t.Context(), input); err != nil {
		t.Fatal(err)
	}
	result, err := alice.build(t.Context(), nix.Discard, "out", input.info.Path)
	mustSucceed(t, result, err)
	if got := b2.built(); !slices.Equal(got, []string{"out"}) {
		t.Errorf("b2 built %q, b1 %q", got, b1.built())
	}
}
