package cache

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// scrubbedCache is a store with rate bytes a second of scrubbing, in a bubble.
func scrubbedCache(t *testing.T, dir string, rate int64) *Cache {
	return openCache(t, Options{Dir: dir, ScrubRate: rate})
}

// Guards against rot that is found only when somebody asks, perhaps years later.
func TestScrubberFindsWhatRotted(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, Options{Dir: dir})
		all := filler(t, c, "p", 20)
		closeCache(t, c)
		rot(t, dir, all[7], 100)
		if err := os.Remove(narFile(dir, all[11])); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(narFile(dir, all[13]), 8); err != nil {
			t.Fatal(err)
		}
		c = scrubbedCache(t, dir, 1<<20)
		time.Sleep(time.Minute)
		synctest.Wait()
		for i, o := range all {
			if i == 7 || i == 11 || i == 13 {
				absent(t, c, "team", o.info.Path)
			} else {
				o.holds(t, c, "team")
			}
		}
		if s := c.Stats(); s.Broken != 3 || s.Corrupt != 2 || s.Quarantined != 2 || s.Paths != 17 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// Guards against a scrubber that takes the disk from those who wait, or one that a
// busy store never lets run.
func TestScrubberKeepsItsRateAndYields(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, Options{Dir: dir})
		o := obj("large", strings.Repeat("x", 10<<20))
		o.receive(t, c, in("team"))
		flushed(t, c)
		closeCache(t, c)
		c = scrubbedCache(t, dir, 1<<20)
		time.Sleep(5 * time.Second)
		if n := c.Stats().Scrubbed; n < 4<<20 || n > 6<<20 {
			t.Errorf("%d bytes in 5 s at 1 MiB/s", n)
		}
		r := openNar(t, c, o) // somebody reads, from now on
		before := c.Stats().Scrubbed
		time.Sleep(16 * time.Second)
		if n := c.Stats().Scrubbed - before; n < 1<<20 || n > 3<<20 {
			t.Errorf("%d bytes in 16 s under load", n)
		}
		r.Close()
		time.Sleep(5 * time.Second)
		if n := c.Stats().Scrubbed; n < 10<<20 {
			t.Errorf("%d bytes when the load was over", n)
		}
	})
}

// Guards against a round that begins anew with every start, and never comes to the
// end of a large store; and against one that begins at once when it has ended.
func TestScrubberGoesOnWhereItWas(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, Options{Dir: dir})
		for _, name := range names("p", 10) {
			obj(name, name+strings.Repeat("x", 1<<20)).receive(t, c, in("team"))
		}
		closeCache(t, c)
		var total int64
		for range 15 {
			c = scrubbedCache(t, dir, 1<<20)
			time.Sleep(1700 * time.Millisecond)
			total += c.Stats().Scrubbed
			closeCache(t, c)
		}
		text, err := os.ReadFile(filepath.Join(dir, scrubName))
		if err != nil || !strings.HasSuffix(string(text), " end\n") {
			t.Errorf("after 15 starts: %q, %v", text, err)
		}
		if total > 20<<20 {
			t.Errorf("%d bytes were read", total)
		}
		c = scrubbedCache(t, dir, 1<<20)
		time.Sleep(scrubEvery / 2)
		if n := c.Stats().Scrubbed; n != 0 {
			t.Errorf("%d bytes before the next round is due", n)
		}
		time.Sleep(scrubEvery)
		synctest.Wait()
		if n := c.Stats().Scrubbed; n < 10<<20 {
			t.Errorf("%d bytes in the next round", n)
		}
	})
}

// Guards against a note that stops the scrubber, or sends it where there is nothing.
func FuzzScrubNote(f *testing.F) {
	for _, text := range []string{"1700000000 start\n", "1700000000 end\n", "1 0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa\n", "", " ", "x y", "1 sha1:aaaa"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRound(text)
		if err != nil {
			return
		}
		again, err := parseRound(r.String())
		if err != nil || again != r {
			t.Errorf("%q: %+v, written and read again %+v, %v", text, r, again, err)
		}
	})
}

// Guards against a quarantine that fills the disk in silence, or throws away what
// is new and keeps what is old.
func TestQuarantineIsBounded(t *testing.T) {
	dir := newDir(t)
	var clock atomic.Int64 // the keeper looks at it too
	clock.Store(time.Now().UnixNano())
	now := func() time.Time { return time.Unix(0, clock.Load()) }
	pass := func(d time.Duration) { clock.Add(int64(d)) }
	c := openCache(t, Options{Dir: dir, Size: 200 * quarantineShare * blockSize / 10, Now: now})
	all := filler(t, c, "p", 30) // of 20 blocks, each a block in quarantine
	inQuarantine := func() int { return len(filesIn(t, filepath.Join(dir, quarantineDir), "")) }
	for _, o := range all[:25] {
		pass(time.Minute)
		rot(t, dir, o, 100)
		if _, err := readNar(t.Context(), c, "team", o.info.Path); err == nil {
			t.Fatal("damage is not seen")
		}
	}
	if n := inQuarantine(); n != 20 {
		t.Errorf("%d files, want 20", n)
	}
	for i, o := range all[:25] {
		_, err := os.Stat(filepath.Join(dir, quarantineDir, filepath.Base(narFile(dir, o))))
		if kept := err == nil; kept != (i >= 5) {
			t.Errorf("file %d of 25 is kept: %v", i, kept)
		}
	}
	if s := c.Stats(); s.Quarantined != 20 || s.QuarantinedBytes != 20*blockSize {
		t.Errorf("stats: %+v", s)
	}
	pass(quarantineAge - 10*time.Minute + time.Second)
	c.keeper.do(c.keeper.tidyQuarantine)
	if n := inQuarantine(); n != 10 {
		t.Errorf("%d files after a month, want 10", n)
	}
	pass(quarantineAge)
	closeCache(t, c)
	c = openCache(t, Options{Dir: dir, Now: now})
	c.keeper.do(func() {})
	if n := inQuarantine(); n != 0 {
		t.Errorf("%d files stay at the next start", n)
	}
	if s := c.Stats(); s.Quarantined != 0 || s.QuarantinedBytes != 0 {
		t.Errorf("stats: %+v", s)
	}
}
