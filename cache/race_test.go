package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against two first comers: many who bring a path at once, with two
// contents, must agree on one, and nobody may read a mixture.
func TestManyUploadersOfOnePath(t *testing.T) {
	c := openCache(t, Options{Dir: newDir(t)})
	for round := range 10 {
		name := fmt.Sprintf("p%d", round)
		contents := [2]object{obj(name, strings.Repeat("a", 50_000)), obj(name, strings.Repeat("b", 60_000))}
		var added sync.Map
		var all sync.WaitGroup
		for n := range 16 {
			all.Go(func() {
				o := contents[n%2]
				outcome, err := o.bring(t, c, n)
				if err != nil {
					t.Error(err)
				}
				if outcome == Added {
					added.Store(n, n%2)
				}
				got, err := readNar(t.Context(), c, "team", o.info.Path)
				if err != nil || !bytes.Equal(got, contents[0].nar) && !bytes.Equal(got, contents[1].nar) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
			})
		}
		all.Wait()
		winners := 0
		added.Range(func(_, content any) bool {
			winners++
			contents[content.(int)].holds(t, c, "team")
			return true
		})
		if winners != 1 {
			t.Errorf("%d were the first", winners)
		}
	}
	if s := c.Stats(); s.Added != 10 {
		t.Errorf("stats: %+v", s)
	}
}

// bring uploads or announces, whatever n says.
func (o object) bring(t *testing.T, c *Cache, n int) (Outcome, error) {
	g := Grant{Domain: "team", Provenance: Provenance(n % 4)}
	if n%3 != 0 {
		return c.Receive(t.Context(), o.info, bytes.NewReader(o.nar), g)
	}
	a, err := c.Announce(o.info, g)
	if err != nil {
		return 0, err
	}
	if a.Needed() {
		return a.Fill(t.Context(), bytes.NewReader(o.nar))
	}
	return a.Wait(t.Context())
}

// Guards against readers, uploaders, pins and an eviction that runs all the time
// getting in each other's way: what is pinned stays, what is read is right, and
// in the end the sums are.
func TestUploadsReadersAndEvictionAtOnce(t *testing.T) {
	dir := newDir(t)
	c := openCache(t, Options{Dir: dir, Size: 150 * unit, PinnedBytes: 20 * unit})
	scanned(t, c)
	var all sync.WaitGroup
	for n := range 6 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 1))
			for i := range 60 {
				o := obj(fmt.Sprintf("p%d", random.IntN(150)), "content")
				content := strings.Repeat(o.info.Path.Base(), random.IntN(2)*300)
				o = obj(o.info.Path.Name(), content)
				domain := []string{"team", "others"}[random.IntN(2)]
				useOnce(t, c, o, domain, i)
			}
		})
	}
	all.Wait()
	flushed(t, c)
	roomy(t, c)
	s := c.Stats()
	rows := allRows(t, c)
	if s.Evictions == 0 || s.Differing == 0 || s.Paths != int64(len(rows)) || s.Arriving != 0 || s.Broken != 0 || s.Unpublished != 0 {
		t.Errorf("stats with %d rows: %+v", len(rows), s)
	}
	bytes := map[string]int64{}
	for _, k := range rows {
		bytes[wholeRow(t, c, k)] = 0
	}
	wantFiles(t, dir, narSuffix, len(bytes))
	wantFiles(t, dir, narinfoSuffix, len(rows))
	if len(c.pins) != 0 || len(c.claims) != 0 || len(c.owners) != 0 || c.room.claimed != 0 || c.room.waiting != 0 {
		t.Errorf("left: pins %v, claims %v, owners %v, claimed %d", c.pins, c.claims, c.owners, c.room.claimed)
	}
}

func useOnce(t *testing.T, c *Cache, o object, domain string, i int) {
	pins := c.NewPins(domain)
	defer pins.Release()
	if _, err := c.Receive(t.Context(), o.info, bytes.NewReader(o.nar), Grant{Domain: domain, Provenance: Provenance(i % 5)}); err != nil {
		t.Error(err)
	}
	if len(pins.Pin(domain, []nix.StorePath{o.info.Path})) == 0 {
		return // evicted already
	}
	info, err := c.QueryPathInfo(domain, o.info.Path)
	if err != nil {
		t.Errorf("%s was promised: %v", o.info.Path.Name(), err)
		return
	}
	r, err := c.OpenNar(t.Context(), domain, o.info.Path)
	if err != nil {
		t.Errorf("%s was promised: %v", o.info.Path.Name(), err)
		return
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || nix.HashBytes(nix.SHA256, got) != info.NarHash {
		t.Errorf("NAR of %s: %d bytes, %v", o.info.Path.Name(), len(got), err)
	}
}
