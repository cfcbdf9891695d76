package cache

import (
	"context"

	"nixbastion/internal/nix"
)

// publication is a path between its announcement or verification and its
// durability. Cache.mu guards records and arriving.
type publication struct {
	spool *spool
	// records by the domains that are to have them.
	records map[key]*record
	// arriving says that the content is not verified yet.
	arriving bool
	// settled is closed when an arrival is verified or failed; err is why.
	settled chan struct{}
	err     error
	// queued is closed when the keeper has it: what comes to him later is published
	// later.
	queued chan struct{}
	// published is closed when the path is durable, or could not be made so;
	// publishErr is why.
	published  chan struct{}
	publishErr error
}

func newPublication(s *spool) *publication {
	return &publication{spool: s, settled: make(chan struct{}), queued: make(chan struct{}), published: make(chan struct{})}
}

// claim is the right to decide about a path, in all domains. While a record is
// evicted, the domain that loses it is told.
type claim struct {
	done     chan struct{}
	evicting bool
	domain   string
}

// claimPath waits for the claim on a path. The claim is held for moments: nobody
// waits for a peer with it.
func (c *Cache) claimPath(p nix.StorePath) (release func()) {
	for {
		c.mu.Lock()
		held := c.claims[p.HashPart()]
		if held == nil {
			mine := &claim{done: make(chan struct{})}
			c.claims[p.HashPart()] = mine
			c.mu.Unlock()
			return func() { c.releaseClaim(p.HashPart(), mine) }
		}
		c.mu.Unlock()
		<-held.done
	}
}

func (c *Cache) releaseClaim(hashPart string, held *claim) {
	c.mu.Lock()
	delete(c.claims, hashPart)
	c.mu.Unlock()
	close(held.done)
}

// commit lets verified bytes be valid, or discards them if the path is. The
// first bytes of a path in a domain win. own is the arrival that brought the
// bytes, nil for an upload.
func (c *Cache) commit(ctx context.Context, rec *record, s *spool, g Grant, own *publication) (Outcome, error) {
	for {
		release := c.claimPath(rec.info.Path)
		rival := c.rival(rec, g.Domain, own)
		if rival == nil {
			outcome, err := c.decide(rec, s, g, own)
			release()
			return outcome, err
		}
		release()
		// Other bytes of the path were announced and others may be reading
		// them. Only their end tells whether ours are needed.
		select {
		case <-rival.settled:
		case <-ctx.Done():
			c.drop(s, own, context.Cause(ctx))
			return 0, context.Cause(ctx)
		}
	}
}

// rival returns an arrival of other bytes that the domain can see already.
func (c *Cache) rival(rec *record, domain string, own *publication) *publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := keyOf(domain, rec.info.Path)
	p := c.pending[k]
	if p == nil || p == own || !p.arriving || p.records[k].sameBytes(rec) {
		return nil
	}
	return p
}

func (r *record) sameBytes(other *record) bool {
	return r.info.Path == other.info.Path && r.info.NarHash == other.info.NarHash
}

// decide needs the claim on the path. It takes over the spool.
func (c *Cache) decide(rec *record, s *spool, g Grant, own *publication) (Outcome, error) {
	mine, public := keyOf(g.Domain, rec.info.Path), keyOf(publicDomain, rec.info.Path)
	have := c.holders(own, false, mine, public)
	if old := have[mine]; old != nil && old.info.Path != rec.info.Path {
		err := clash(rec.info.Path, old)
		c.drop(s, own, err)
		return 0, err
	}
	seen := have[mine]
	if seen == nil && have[public] != nil && have[public].info.Path == rec.info.Path {
		seen = have[public]
	}
	if seen != nil && !seen.sameBytes(rec) {
		c.counters.differing.Add(1)
		c.drop(s, own, nil)
		return Differs, nil
	}
	outcome := Added
	if seen != nil {
		outcome = AlreadyValid
	}
	records := c.news(have, c.targets(rec, g))
	if len(records) == 0 {
		c.drop(s, own, nil)
		return outcome, nil
	}
	if outcome == Added {
		c.counters.added.Add(1)
	}
	defer c.signing.enter()()
	for k, r := range records {
		records[k] = c.sign(k, g.Domain, r)
	}
	return outcome, c.install(records, s, own)
}

// clash refuses a path that would have the narinfo file of another.
func clash(p nix.StorePath, old *record) error {
	return nix.Refuse("path '%s' cannot be stored, since '%s' has the same hash", p, old.info.Path)
}

// holders returns who has a record already, apart from the arrival that asks.
// What is merely announced may still fail and counts only with announced.
// What is pending is looked at first: it leaves there only after it came into
// the index, and nothing enters without the claim that the caller holds.
func (c *Cache) holders(own *publication, announced bool, keys ...key) map[key]*record {
	c.adoptOffers()
	return c.holdersNow(own, announced, keys...)
}

// holdersNow is holders without a look at what other processes offer.
func (c *Cache) holdersNow(own *publication, announced bool, keys ...key) map[key]*record {
	have := map[key]*record{}
	var ask []key
	c.mu.Lock()
	for _, k := range keys {
		if p := c.pending[k]; p != nil && p != own && (announced || !p.arriving) {
			have[k] = p.records[k]
		} else {
			ask = append(ask, k)
		}
	}
	c.mu.Unlock()
	for i, rec := range c.read(ask) {
		if rec != nil {
			have[ask[i]] = rec
		}
	}
	return have
}

// targets are the records that a grant makes of a verified one. What not everybody
// sees whole, with all that it refers to, is not public.
func (c *Cache) targets(rec *record, g Grant) map[key]*record {
	records := map[key]*record{keyOf(g.Domain, rec.info.Path): rec}
	if g.Public && rec.provenance > Claimed && c.checkReferences(publicDomain, rec.info) == nil {
		records[keyOf(publicDomain, rec.info.Path)] = forEverybody(rec)
	}
	return records
}

// forEverybody leaves out what says more of a domain than that it had the bytes:
// the name of the derivation, which nothing proves either.
func forEverybody(rec *record) *record {
	if rec.info.Deriver.IsZero() {
		return rec
	}
	info := rec.info.Clone()
	info.Deriver = nix.StorePath{}
	return &record{info: info, provenance: rec.provenance}
}

// news returns the records that are to be written: new ones, better ones, and
// those whose NAR got lost.
func (c *Cache) news(have, more map[key]*record) map[key]*record {
	records := map[key]*record{}
	for k, rec := range more {
		old := have[k]
		switch {
		case old == nil:
			records[k] = rec
		case !old.sameBytes(rec): // another's public path stays as it is
		case merge(old, rec) != old:
			records[k] = merge(old, rec)
		case !c.hasBytes(k, old):
			records[k] = old
		}
	}
	return records
}

func (c *Cache) hasBytes(k key, rec *record) bool {
	return c.pendingAs(k, rec) != nil || hasLength(c.root, narName(rec.info.NarHash), rec.info.NarSize)
}

// drop discards bytes that are not needed, with the arrival that brought them.
func (c *Cache) drop(s *spool, own *publication, err error) {
	if own != nil {
		c.settle(own, nil, err)
	}
	s.discard(err)
}

// install makes verified records the valid ones and sends them on their way to
// the disk.
func (c *Cache) install(records map[key]*record, s *spool, own *publication) error {
	p := own
	if p == nil {
		p = newPublication(s)
	}
	if !c.settle(p, records, nil) {
		s.discard(ErrClosed)
		return ErrClosed
	}
	c.keeper.submit(p)
	return nil
}

// settle ends the arriving of a publication: its records are those that are
// valid from now on, none if it failed or was not needed. It reports false, and
// settles it as failed, if the cache was closed.
func (c *Cache) settle(p *publication, records map[key]*record, err error) bool {
	now := c.now().UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	open := !c.closed
	if !open && err == nil {
		err, records = ErrClosed, nil
	}
	for k := range p.records {
		if c.pending[k] == p {
			delete(c.pending, k)
		}
	}
	for k := range records {
		c.pending[k] = p
		c.touched[k] = now
	}
	p.records, p.arriving, p.err = records, false, err
	close(p.settled)
	return open
}
