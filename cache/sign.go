package cache

import (
	"context"
	"fmt"

	"nixbastion/internal/nix"
)

// AddSignatures adds signatures to a path that is valid in the domain of the
// grant, and raises who vouches for it to that of the grant if that is better.
// The caller has verified them against info. A grant for everybody counts as in
// [Cache.Receive]. It returns when that is durable, so it waits for a path that is
// still arriving. A path that is not valid, or not as info says any more, is
// nix.ErrNotFound.
func (c *Cache) AddSignatures(ctx context.Context, info *nix.PathInfo, sigs []nix.Signature, g Grant) error {
	for {
		pub, err := c.tryAddSignatures(info, sigs, g)
		if err != nil || pub == nil {
			return err
		}
		if err := c.awaitPublished(ctx, pub); err != nil {
			return err
		}
	}
}

// tryAddSignatures returns the publication that has to come to its end first, if
// there is one.
func (c *Cache) tryAddSignatures(info *nix.PathInfo, sigs []nix.Signature, g Grant) (*publication, error) {
	p := info.Path
	release := c.claimPath(p)
	defer release()
	k, rec := c.locate(g.Domain, p)
	if rec == nil || rec.info.Fingerprint() != info.Fingerprint() {
		return nil, fmt.Errorf("%s: %w", p, nix.ErrNotFound)
	}
	if pub := c.pendingAs(k, rec); pub != nil {
		return pub, nil
	}
	signed := rec.info.Clone()
	signed.Sigs = sigs
	merged := merge(rec, &record{info: signed, provenance: g.Provenance})
	mine, public := keyOf(g.Domain, p), keyOf(publicDomain, p)
	have := c.holders(nil, false, mine, public)
	if pub := c.pendingAs(public, have[public]); pub != nil {
		return pub, nil
	}
	defer c.hold(rec.info.References)() // until what everybody sees is in the index with them
	more := c.targets(merged, g)
	if merged == rec {
		delete(more, mine) // what everybody sees needs no record of its own
	}
	defer c.signing.enter()()
	for k, rec := range c.news(have, more) {
		rec = c.sign(k, g.Domain, rec) // it may be worth more than before
		var err error
		if !c.keeper.do(func() { err = c.keeper.replace(k, rec) }) {
			err = c.whyNot()
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// awaitPublished waits until a path is durable, or will never be.
func (c *Cache) awaitPublished(ctx context.Context, p *publication) error {
	select {
	case <-p.settled:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c.mu.Lock()
	coming := len(p.records) > 0
	c.mu.Unlock()
	if !coming {
		return nil
	}
	c.keeper.hurry()
	select {
	case <-p.published:
		return p.publishErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// replace writes a record in place of one with the same bytes, or beside the
// public one. The claim on the path is held.
func (k *keeper) replace(name key, rec *record) error {
	if err := k.writeNarinfo(name, rec); err != nil {
		return fmt.Errorf("write narinfo of %s: %w", rec.info.Path, err)
	}
	done, err := k.c.index.update(func(t *indexTx) error {
		return t.put(name, &row{record: *rec, lastUse: k.c.now().UnixNano()})
	})
	if err != nil {
		k.c.lostTrack()
		return err
	}
	k.c.applied(done)
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	k.c.changes++
	k.c.hot.Add(name, rec)
	return nil
}

// writeNarinfo publishes one narinfo and makes it durable.
func (k *keeper) writeNarinfo(name key, rec *record) error {
	if err := k.makeDomain(name.domain); err != nil {
		return err
	}
	file, err := k.c.scratch.write(formatNarinfo(rec))
	if err != nil {
		return err
	}
	if err := syncFile(k.c.scratch.root, file); err != nil {
		return err
	}
	if err := k.c.scratch.publish(k.c.root, file, name.narinfoName()); err != nil {
		return err
	}
	return syncFile(k.c.root, folder(name.domain))
}
