package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"nixbastion/internal/nix"
)

// QueryValidPaths returns those of paths that are valid in the domain, in the
// order asked. Paths that are announced and still arriving count.
func (c *Cache) QueryValidPaths(domain string, paths []nix.StorePath) []nix.StorePath {
	return c.validOf(paths, c.find(domain, paths))
}

// validOf returns the paths that were found, and counts them.
func (c *Cache) validOf(paths []nix.StorePath, found []*record) []nix.StorePath {
	valid := make([]nix.StorePath, 0, len(paths))
	for i, rec := range found {
		if rec != nil {
			valid = append(valid, paths[i])
		}
	}
	c.count(len(valid), len(paths)-len(valid))
	return valid
}

// QueryPathInfo returns what is known of a path that is valid in the domain, or
// nix.ErrNotFound. The info is shared: nobody may change it. For a path that is
// still arriving it is what was announced.
func (c *Cache) QueryPathInfo(domain string, p nix.StorePath) (*nix.PathInfo, error) {
	return c.infoOf(p, c.find(domain, []nix.StorePath{p})[0])
}

// infoOf returns the info of a path for which rec was found, and counts it.
func (c *Cache) infoOf(p nix.StorePath, rec *record) (*nix.PathInfo, error) {
	if rec == nil {
		c.count(0, 1)
		return nil, fmt.Errorf("%s: %w", p, nix.ErrNotFound)
	}
	c.count(1, 0)
	return rec.info, nil
}

// QueryProvenance returns who vouches for a path that is valid in the domain,
// or nix.ErrNotFound. A path that is still arriving is Claimed.
func (c *Cache) QueryProvenance(domain string, p nix.StorePath) (Provenance, error) {
	rec := c.findOne(domain, p)
	if rec == nil {
		return Claimed, fmt.Errorf("%s: %w", p, nix.ErrNotFound)
	}
	return rec.provenance, nil
}

// QueryVouched returns what is known of a path that is valid in the domain together
// with who vouches for just these bytes, or nix.ErrNotFound. The info is shared.
func (c *Cache) QueryVouched(domain string, p nix.StorePath) (*nix.PathInfo, Provenance, error) {
	rec := c.findOne(domain, p)
	if rec == nil {
		return nil, Claimed, fmt.Errorf("%s: %w", p, nix.ErrNotFound)
	}
	return rec.info, rec.provenance, nil
}

func (c *Cache) findOne(domain string, p nix.StorePath) *record {
	rec := c.find(domain, []nix.StorePath{p})[0]
	if rec == nil {
		c.count(0, 1)
	} else {
		c.count(1, 0)
	}
	return rec
}

func (c *Cache) count(hits, misses int) {
	c.counters.hits.Add(int64(hits))
	c.counters.misses.Add(int64(misses))
}

// OpenNar opens the NAR of a path that is valid in the domain, or returns
// nix.ErrNotFound. An arriving path is followed while it grows: its reader waits
// as long as ctx lives, and fails before a clean end if the bytes turn out wrong.
// An open reader outlives eviction. The caller closes it.
func (c *Cache) OpenNar(ctx context.Context, domain string, p nix.StorePath) (io.ReadCloser, error) {
	for range 3 { // what is pending may become durable between two looks
		nar, err := c.tryOpen(ctx, domain, p)
		if !errors.Is(err, errMoved) {
			return nar, err
		}
	}
	return nil, fmt.Errorf("%s: %w", p, nix.ErrNotFound)
}

var errMoved = errors.New("the file was moved")

func (c *Cache) tryOpen(ctx context.Context, domain string, p nix.StorePath) (io.ReadCloser, error) {
	k, rec := c.locate(domain, p)
	if rec == nil {
		c.count(0, 1)
		return nil, fmt.Errorf("%s: %w", p, nix.ErrNotFound)
	}
	c.count(1, 0)
	pub := c.pendingAs(k, rec)
	if pub == nil {
		return c.openPublished(k, rec)
	}
	nar, err := pub.spool.follow(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errMoved
	}
	return nar, err
}

// openPublished opens a NAR and checks that it is whole; that its bytes are right
// is checked while they are read, where that is due.
func (c *Cache) openPublished(k key, rec *record) (io.ReadCloser, error) {
	nar, err := c.openWhole(rec, false)
	if err == nil {
		return nar, nil
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errLength) {
		return nil, fmt.Errorf("open NAR of %s: %w", rec.info.Path, err)
	}
	if err := c.dropBroken(k, rec); err != nil {
		return nil, fmt.Errorf("drop %s: %w", rec.info.Path, err)
	}
	return nil, errMoved
}

var errLength = errors.New("NAR has another length than its path info says")

func checkLength(f *os.File, size uint64) (fs.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if uint64(info.Size()) != size {
		return nil, errLength
	}
	return info, nil
}

// find returns the records of paths that are visible in a domain: its own, or
// else the public one; nil for the others. It marks them as used.
func (c *Cache) find(domain string, paths []nix.StorePath) []*record {
	found := make([]*record, len(paths))
	for i, l := range c.look(domain, paths) {
		found[i] = l.rec
	}
	return found
}

// locate is find for one path that also tells where the record is.
func (c *Cache) locate(domain string, p nix.StorePath) (key, *record) {
	l := c.look(domain, []nix.StorePath{p})[0]
	return l.key, l.rec
}

// sight is what a look at one path found.
type sight struct {
	key   key
	rec   *record // nil: not there
	known bool    // memory told; else the index must
}

// look is peek for who has use for the paths.
func (c *Cache) look(domain string, paths []nix.StorePath) []sight {
	seen := c.peek(domain, paths)
	c.touch(seen)
	return seen
}

func (c *Cache) peek(domain string, paths []nix.StorePath) []sight {
	seen, ask, before := c.rememberedAll(domain, paths)
	if len(ask) > 0 && c.adoptOffers() {
		seen, ask, before = c.rememberedAll(domain, paths)
	}
	if len(ask) > 0 {
		c.lookInIndex(domain, paths, seen, ask, before)
	}
	return seen
}

// rememberedAll answers from memory. ask are those of paths for which it does not
// know, as of the state before.
func (c *Cache) rememberedAll(domain string, paths []nix.StorePath) (seen []sight, ask []int, before uint64) {
	seen = make([]sight, len(paths))
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, p := range paths {
		if seen[i] = c.remembered(domain, p); !seen[i].known {
			ask = append(ask, i)
		}
	}
	return seen, ask, c.changes
}

// remembered answers from memory. c.mu is held.
func (c *Cache) remembered(domain string, p nix.StorePath) sight {
	if c.leaving(domain, p) {
		return sight{known: true}
	}
	for _, d := range [...]string{domain, publicDomain} {
		k := keyOf(d, p)
		rec, known := c.recall(k)
		if !known {
			return sight{}
		}
		if rec != nil && rec.info.Path == p {
			return sight{key: k, rec: rec, known: true}
		}
	}
	return sight{known: true}
}

// leaving reports whether a record that the domain sees is being evicted. Then
// the path is not there, whatever the index says. c.mu is held.
func (c *Cache) leaving(domain string, p nix.StorePath) bool {
	cl := c.claims[p.HashPart()]
	return cl != nil && cl.evicting && (cl.domain == domain || cl.domain == publicDomain)
}

// recall returns what memory knows of one key. c.mu is held.
func (c *Cache) recall(k key) (rec *record, known bool) {
	if pub := c.pending[k]; pub != nil {
		return pub.records[k], true
	}
	return c.hot.Get(k)
}

func (c *Cache) lookInIndex(domain string, paths []nix.StorePath, seen []sight, ask []int, before uint64) {
	keys := make([]key, 0, 2*len(ask))
	for _, i := range ask {
		keys = append(keys, keyOf(domain, paths[i]), keyOf(publicDomain, paths[i]))
	}
	recs := c.read(keys)
	c.remember(keys, recs, before)
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, i := range ask {
		seen[i] = c.choose(paths[i], keys[2*n:2*n+2], recs[2*n:2*n+2])
	}
}

// choose prefers what memory knows over what was read: it may have become
// pending since the first look. c.mu is held.
func (c *Cache) choose(p nix.StorePath, keys []key, recs []*record) sight {
	for i, k := range keys {
		rec, known := c.recall(k)
		if !known {
			rec = recs[i]
		}
		if rec != nil && rec.info.Path == p {
			return sight{key: k, rec: rec, known: true}
		}
	}
	return sight{known: true}
}

// read returns what the index has of keys, and while published paths may be
// missing there, what narinfo files say.
func (c *Cache) read(keys []key) []*record {
	if r := c.retired.Load(); r != nil {
		return c.readPublished(r, keys)
	}
	complete := c.complete() // before the look: the scan may end behind it
	recs, err := c.index.find(keys)
	if err != nil {
		if r := c.retired.Load(); r != nil { // the index was given away meanwhile
			return c.readPublished(r, keys)
		}
		c.log.Error("cannot read the index", "err", err)
		return make([]*record, len(keys))
	}
	if !complete {
		for i, k := range keys {
			if recs[i] == nil {
				recs[i] = c.stray(k)
			}
		}
	}
	return recs
}

// remember keeps answers of the index in memory, unless it changed since.
func (c *Cache) remember(keys []key, recs []*record, before uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes != before || !c.complete() {
		return
	}
	all := !c.Shared() // nobody else can make paths valid
	for i, k := range keys {
		if recs[i] != nil || all {
			c.hot.Add(k, recs[i])
		}
	}
}

// maxTouched is how many used paths are remembered before recency is written.
const maxTouched = 100_000

func (c *Cache) touch(seen []sight) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.markUsed(seen, now)
}

// markUsed needs c.mu.
func (c *Cache) markUsed(seen []sight, now time.Time) {
	for _, l := range seen {
		if l.rec != nil {
			c.touched[l.key] = now.UnixNano()
		}
	}
	if len(c.touched) > maxTouched {
		c.keeper.touchSoon()
	}
}

// pendingAs returns the publication that brings this record, nil if it is durable.
func (c *Cache) pendingAs(k key, rec *record) *publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pub := c.pending[k]; pub != nil && pub.records[k] == rec {
		return pub
	}
	return nil
}
