package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nixbastion/internal/nix"
)

// What the admin does with the store as a whole. It is there on a running store
// and changes nothing for those who are served meanwhile, but for what it is asked
// to take away.

// Entry is a durable path in one domain.
type Entry struct {
	Domain     string // "" is the public one
	Info       *nix.PathInfo
	Provenance Provenance
	LastUse    int64 // in nanoseconds since 1970
	Pinned     bool  // by the admin, in this domain
}

// List calls do with the paths of a domain in the order of their hashes, or of all
// domains with all. What is not durable yet is made so before.
func (c *Cache) List(ctx context.Context, domain string, all bool, do func(Entry) error) error {
	if err := c.settled(ctx); err != nil {
		return err
	}
	if err := c.onKeeper(func(k *keeper) error { k.writeRecency(); return nil }); err != nil {
		return err
	}
	match := func(k key, _ rowHead) bool { return all || k.domain == domain }
	return c.index.everyEntry(match, func(found []entry) error {
		for _, e := range found {
			if err := do(c.entry(e)); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	})
}

func (c *Cache) entry(e entry) Entry {
	return Entry{
		Domain: e.key.domain, Info: e.row.info, Provenance: e.row.provenance, LastUse: e.row.lastUse,
		Pinned: c.isPinned(e.key.domain, e.row.info.Path),
	}
}

// Find returns the entry of a path as a domain sees it, or nix.ErrNotFound.
func (c *Cache) Find(ctx context.Context, domain string, p nix.StorePath) (Entry, error) {
	if err := c.settled(ctx); err != nil {
		return Entry{}, err
	}
	found := c.peek(domain, []nix.StorePath{p})[0]
	if found.rec == nil {
		return Entry{}, fmt.Errorf("%s: %w", p, nix.ErrNotFound)
	}
	e := entry{found.key, &row{record: *found.rec}}
	if r, err := c.index.row(found.key); err == nil && r.info.Path == p {
		e.row = r
	}
	return c.entry(e), nil
}

// settled returns when the index has all that is verified and published.
func (c *Cache) settled(ctx context.Context) error {
	if err := c.Flush(ctx); err != nil {
		return err
	}
	return c.awaitScan(ctx)
}

// Verification is how far Verify is.
type Verification struct {
	NARs, Bytes int64 // read so far
	Of          int64 // NARs in all; 0 if unknown
	Lost        []Lost
}

// Verify reads NARs again, of paths of a domain or with none the whole store, and
// drops what is broken as the scrubber does. tell is called now and then.
func (c *Cache) Verify(ctx context.Context, domain string, paths []nix.StorePath, tell func(Verification)) (Verification, error) {
	var v Verification
	if err := c.settled(ctx); err != nil {
		return v, err
	}
	check := func(n knownNAR) error {
		lost, err := c.checkNAR(ctx, n, func(_ context.Context, bytes int) error {
			v.Bytes += int64(bytes)
			tell(v)
			return nil
		})
		v.NARs++
		v.Lost = append(v.Lost, lost...)
		return err
	}
	if len(paths) > 0 {
		v.Of = int64(len(paths))
		return v, c.verifyPaths(domain, paths, check)
	}
	var err error
	if v.Of, err = c.index.countNARs(); err != nil {
		return v, err
	}
	return v, c.everyNAR(ctx, check)
}

func (c *Cache) everyNAR(ctx context.Context, do func(knownNAR) error) error {
	var last nix.Hash
	for ctx.Err() == nil {
		nars, err := c.index.narsBehind(last, walkStep)
		if err != nil || len(nars) == 0 {
			return err
		}
		for _, n := range nars {
			if err := do(n); err != nil {
				return err
			}
		}
		last = nars[len(nars)-1].hash
	}
	return context.Cause(ctx)
}

func (c *Cache) verifyPaths(domain string, paths []nix.StorePath, check func(knownNAR) error) error {
	for i, l := range c.peek(domain, paths) {
		if l.rec == nil {
			return fmt.Errorf("%s: %w", paths[i], nix.ErrNotFound)
		}
		if err := check(knownNAR{l.rec.info.NarHash, l.rec.info.NarSize}); err != nil {
			return err
		}
	}
	return nil
}

// Collect evicts paths, least recently used first, until the store takes no more
// than target bytes, or with a negative one until the low watermark is reached. It
// returns how many paths went and what the store takes then: more, if the rest is
// pinned or in use.
func (c *Cache) Collect(ctx context.Context, target int64, tell func(paths, bytes int64)) (paths, bytes int64, err error) {
	if err := c.settled(ctx); err != nil {
		return 0, 0, err
	}
	if target < 0 {
		target = c.room.limit(forOutput) / 100 * lowWatermark
	}
	idle := 0
	for ctx.Err() == nil && c.room.bytes() > target && idle <= maxIdle {
		var took, moved int
		err := c.onKeeper(func(k *keeper) (err error) {
			k.writeRecency()
			took, moved, err = k.evictSome(c.room.bytes() - target)
			return err
		})
		if err != nil || took+moved == 0 {
			return paths, c.room.bytes(), err
		}
		if idle++; took > 0 {
			idle = 0
		}
		paths += int64(took)
		tell(paths, c.room.bytes())
	}
	return paths, c.room.bytes(), context.Cause(ctx)
}

// Remove takes paths away from a domain, with the public record if they have one.
// It refuses to take what others refer to, unless referrers may go as well, and
// what is pinned or promised to a session. It returns what went.
func (c *Cache) Remove(ctx context.Context, domain string, paths []nix.StorePath, referrers bool) ([]Lost, error) {
	if err := c.settled(ctx); err != nil {
		return nil, err
	}
	set, err := c.toRemove(ctx, domain, paths, referrers)
	if err != nil {
		return nil, err
	}
	var gone []Lost
	for len(set.left) > 0 && ctx.Err() == nil {
		err := c.onKeeper(func(k *keeper) error {
			batch := set.next()
			err := k.removeClaimed(batch, set.paths)
			if err == nil {
				for _, name := range batch {
					gone = append(gone, Lost{name.domain, set.paths[name]})
				}
			}
			return err
		})
		if err != nil {
			return gone, err
		}
	}
	return gone, context.Cause(ctx)
}

// removal is a set of records that are to go, with those that refer to each.
type removal struct {
	paths     map[key]nix.StorePath
	referrers map[key][]key
	left      []key // in the order found: referrers behind what they refer to, mostly
}

// toRemove finds what has to go along, or says why it may not.
func (c *Cache) toRemove(ctx context.Context, domain string, paths []nix.StorePath, referrers bool) (*removal, error) {
	set := &removal{paths: map[key]nix.StorePath{}, referrers: map[key][]key{}}
	for _, p := range paths {
		found := false
		for _, d := range []string{domain, publicDomain} {
			k := keyOf(d, p)
			recs, err := c.index.find([]key{k})
			if err != nil {
				return nil, err
			}
			if recs[0] != nil && recs[0].info.Path == p {
				found = true
				set.add(k, p)
			}
		}
		if !found {
			return nil, fmt.Errorf("%s: %w", p, nix.ErrNotFound)
		}
	}
	for i := 0; i < len(set.left); i++ { // set.left grows
		if err := c.addReferrers(ctx, set, set.left[i], referrers); err != nil {
			return nil, err
		}
	}
	for _, k := range set.left {
		if c.isPinned(k.domain, set.paths[k]) {
			return nil, nix.Refuse("path '%s' is pinned in domain %s: nixbastion cache unpin", set.paths[k], k.domain)
		}
	}
	return set, nil
}

func (s *removal) add(k key, p nix.StorePath) {
	if _, there := s.paths[k]; !there {
		s.paths[k] = p
		s.left = append(s.left, k)
	}
}

// addReferrers adds what refers to k, if it may go too.
func (c *Cache) addReferrers(ctx context.Context, set *removal, k key, may bool) error {
	var last key
	for ctx.Err() == nil {
		keys, err := c.index.referrersBehind(k.hashPart, last, findStep)
		if err != nil || len(keys) == 0 {
			return err
		}
		last = keys[len(keys)-1]
		recs, err := c.index.find(keys)
		if err != nil {
			return err
		}
		for i, r := range keys {
			if recs[i] == nil || !refersTo(r, k) {
				continue
			}
			if _, going := set.paths[r]; !going && !may {
				return nix.Refuse("'%s' refers to '%s'; --referrers takes along what refers to it", recs[i].info.Path, set.paths[k])
			}
			set.add(r, recs[i].info.Path)
			set.referrers[k] = append(set.referrers[k], r)
		}
	}
	return context.Cause(ctx)
}

// refersTo reports whether a row that names the path of k means k: rows of one
// domain mean those of their own and of the public one.
func refersTo(r, k key) bool {
	return k.domain == publicDomain || r.domain == publicDomain || r.domain == k.domain
}

// next takes up to evictGroup records out of the set that nothing left in it
// refers to; if all are referred to, in a circle, it takes all.
func (s *removal) next() []key {
	left := map[key]bool{}
	for _, k := range s.left {
		left[k] = true
	}
	var batch []key
	for _, k := range slices.Backward(s.left) {
		held := slices.ContainsFunc(s.referrers[k], func(r key) bool { return left[r] })
		if !held && len(batch) < evictGroup {
			batch = append(batch, k)
			delete(left, k)
		}
	}
	if len(batch) == 0 {
		batch = s.left
	}
	s.left = slices.DeleteFunc(slices.Clone(s.left), func(k key) bool { return slices.Contains(batch, k) })
	return batch
}

// removeClaimed removes records unless a session was promised one of them.
func (k *keeper) removeClaimed(keys []key, paths map[key]nix.StorePath) error {
	if err := k.c.holdPromised(); err != nil {
		return err
	}
	var claimed []key
	defer func() { k.c.unclaim(claimed) }()
	for _, name := range keys {
		path := paths[name]
		if slices.ContainsFunc(claimed, func(c key) bool { return c.hashPart == name.hashPart }) {
			continue // one claim is for the path in all domains
		}
		if slices.ContainsFunc(keys, func(c key) bool { return c.hashPart == name.hashPart && c != name }) {
			name.domain = publicDomain // it leaves several at once
		}
		if !k.c.claimToEvict(name) {
			return nix.Refuse("path '%s' is in use now, by a client's session or a pin of another domain", path)
		}
		claimed = append(claimed, name)
	}
	for _, name := range keys {
		if err := k.c.unreferred(name, paths); err != nil {
			return err
		}
	}
	gone, err := k.vacate(keys)
	if err == nil && len(gone) < len(keys) {
		err = nix.Refuse("a path is in use now, by a session of the process that was here before; try again")
	}
	return errors.Join(k.remove(gone, nil), err)
}

// unreferred refuses to take what something refers to that came after the set was put
// together, and is not going.
func (c *Cache) unreferred(k key, going map[key]nix.StorePath) error {
	var last key
	for {
		keys, err := c.index.referrersBehind(k.hashPart, last, findStep)
		if err != nil || len(keys) == 0 {
			return err
		}
		last = keys[len(keys)-1]
		for _, r := range keys {
			if _, goes := going[r]; !goes && refersTo(r, k) {
				return nix.Refuse("something refers to '%s' that came just now; try again", going[k])
			}
		}
	}
}

// Overview is what the store holds, as of now.
type Overview struct {
	Stats   Stats
	Size    int64 // what NARs may take
	Reserve int64 // the part of it that is for uploads alone
	Domains []DomainOverview
	// RoundBegan is when the scrubber began to read the store, in seconds since
	// 1970, 0 if it never did; RoundEnded says that it is through.
	RoundBegan int64
	RoundEnded bool
}

// DomainOverview is what one domain holds.
type DomainOverview struct {
	Name   string // "" is the public one
	Paths  int64
	Bytes  int64 // of its NARs, which other domains may share
	Pinned int64
}

// Overview counts what the store holds. It goes through the index once.
func (c *Cache) Overview(ctx context.Context) (Overview, error) {
	if err := c.settled(ctx); err != nil {
		return Overview{}, err
	}
	var domains []DomainOverview
	err := c.index.everyEntry(func(k key, h rowHead) bool {
		if len(domains) == 0 || domains[len(domains)-1].Name != k.domain { // rows are in order
			domains = append(domains, DomainOverview{Name: k.domain, Pinned: int64(len(c.PinnedPaths(k.domain)))})
		}
		d := &domains[len(domains)-1]
		d.Paths++
		d.Bytes += int64(h.narSize)
		return false
	}, func([]entry) error { return nil })
	o := Overview{Stats: c.Stats(), Size: c.room.size, Reserve: c.room.reserve, Domains: domains}
	if text, readErr := readText(c.root, scrubName); readErr == nil {
		if r, parseErr := parseRound(text); parseErr == nil {
			o.RoundBegan, o.RoundEnded = r.began.Unix(), r.ended
		}
	}
	return o, errors.Join(err, context.Cause(ctx))
}
