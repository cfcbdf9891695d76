package cache

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"nixbastion/internal/nix"
)

// After a change of keys, what is published gets the signatures that it lacks.
// Commits that come meanwhile sign by themselves, so one pass over the rows of a
// domain finds all. Only signatures are added: nothing else of a record changes,
// and when it was last used does not either.

const (
	// signStep is how many rows are looked at, and rewritten, at a time.
	signStep = 64
	// signShare is which part of its time a pass works, as one of so many: the
	// rest is for those who wait for the keeper and the disk.
	signShare = 4
)

// SignProgress tells how far a pass of Resign is.
type SignProgress struct {
	// Seen paths were looked at, Signed of them got signatures.
	Seen, Signed int64
}

// Resign gives all that is valid in a domain the signatures of [Options.Sign]
// that it lacks. It works slowly, so as not to be in anybody's way, and returns
// when all is durable or ctx ends; what was signed stays so. progress, which may
// be nil, is told about each step.
func (c *Cache) Resign(ctx context.Context, domain string, progress func(SignProgress)) error {
	if err := checkDomain(domain); err != nil {
		return fmt.Errorf("sign again: %w", err)
	}
	if err := c.resign(ctx, domain, progress); err != nil {
		return fmt.Errorf("sign domain %s again: %w", domain, err)
	}
	return nil
}

// ResignFor is Resign for a set of keys that has a name: it does nothing if a
// pass with the keys of that name came to its end and [Cache.KeysChange] was not
// told of others since.
func (c *Cache) ResignFor(ctx context.Context, domain, keys string, progress func(SignProgress)) error {
	switch noted, err := c.index.signedWith(domain); {
	case err != nil:
		return fmt.Errorf("sign domain %s again: %w", domain, err)
	case keys == noted:
		return nil
	}
	if err := c.Resign(ctx, domain, progress); err != nil {
		return err
	}
	return c.noteSigned(domain, keys)
}

// KeysChange says, before the keys of that name count in a domain, that they
// will: what was signed with others is not all signed from then on. It is
// durable when KeysChange returns. No keys have the name "".
func (c *Cache) KeysChange(domain, keys string) error {
	noted, err := c.index.signedWith(domain)
	if err != nil || noted == "" || noted == keys {
		return err
	}
	return c.noteSigned(domain, "")
}

func (c *Cache) noteSigned(domain, keys string) error {
	var err error
	if !c.keeper.do(func() {
		_, err = c.index.update(func(t *indexTx) error { return t.noteSigned(domain, keys) })
	}) {
		err = ErrClosed
	}
	return err
}

func (c *Cache) resign(ctx context.Context, domain string, progress func(SignProgress)) error {
	if c.signer == nil {
		return nil
	}
	select {
	case <-c.scanEnd(): // what a crash left outside the index is in it now
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !c.complete() {
		return errors.New("the index is incomplete until the next start")
	}
	c.signing.drain()
	if err := c.flush(ctx.Done()); err != nil { // verified with the keys of before
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.log.Warn("some paths are lost and get no signatures", "err", err)
	}
	return c.resignRows(ctx, domain, progress)
}

func (c *Cache) resignRows(ctx context.Context, domain string, progress func(SignProgress)) error {
	var done SignProgress
	var last key
	for ctx.Err() == nil {
		began := time.Now()
		keys, err := c.index.domainBehind(domain, last, signStep)
		if err != nil || len(keys) == 0 {
			return err
		}
		last = keys[len(keys)-1]
		signed, err := c.resignSome(domain, keys)
		if err != nil {
			return err
		}
		done.Seen += int64(len(keys))
		done.Signed += int64(signed)
		if progress != nil {
			progress(done)
		}
		rest(ctx, (signShare-1)*time.Since(began))
	}
	return context.Cause(ctx)
}

// rest waits, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// resigned is a row that lacks signatures.
type resigned struct {
	key         key
	was, signed *record
}

// resignSome returns how many paths of the domain got signatures. The record for
// all domains gets them too, where it is of the same bytes: its signatures are
// those of who shared it.
func (c *Cache) resignSome(domain string, keys []key) (paths int, err error) {
	all := make([]key, 0, 2*len(keys))
	for _, k := range keys {
		all = append(all, k, key{publicDomain, k.hashPart})
	}
	recs, err := c.index.find(all)
	if err != nil {
		return 0, err
	}
	var lacking []resigned
	for i := 0; i < len(all); i += 2 {
		own, public := recs[i], recs[i+1]
		before := len(lacking)
		if own != nil {
			lacking = c.appendLacking(lacking, all[i], domain, own, own.provenance)
		}
		if own != nil && public != nil && public.sameBytes(own) {
			lacking = c.appendLacking(lacking, all[i+1], domain, public, own.provenance)
		}
		if len(lacking) > before {
			paths++
		}
	}
	if len(lacking) == 0 {
		return 0, nil
	}
	if !c.keeper.do(func() { err = c.keeper.addSignatures(lacking) }) {
		err = ErrClosed
	}
	return paths, err
}

// appendLacking adds a record to those that lack signatures, if it does. The
// domain vouches for it as far as its own record says.
func (c *Cache) appendLacking(lacking []resigned, k key, domain string, rec *record, provenance Provenance) []resigned {
	signed := c.signedAs(Verified{domain: domain, public: k.domain == publicDomain, again: true, rec: &record{info: rec.info, provenance: provenance}})
	if signed.info == rec.info {
		return lacking
	}
	return append(lacking, resigned{k, rec, &record{info: signed.info, provenance: rec.provenance}})
}

// addSignatures writes records anew, all with one sync as a group commit does. A
// row that changed meanwhile is left alone: who changed it has signed it.
func (k *keeper) addSignatures(rows []resigned) error {
	rows, err := k.unchanged(rows)
	if err != nil || len(rows) == 0 {
		return err
	}
	if err := k.writeNarinfos(rows); err != nil {
		return err
	}
	_, err = k.c.index.update(func(t *indexTx) error {
		for _, r := range rows {
			if err := t.sign(r.key, r.signed); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		k.c.lostTrack()
		return err
	}
	k.c.refresh(rows)
	return nil
}

func (k *keeper) unchanged(rows []resigned) ([]resigned, error) {
	keys := make([]key, len(rows))
	for i, r := range rows {
		keys[i] = r.key
	}
	now, err := k.c.index.find(keys)
	if err != nil {
		return nil, err
	}
	var same []resigned
	for i, r := range rows {
		if now[i] != nil && now[i].equal(r.was) {
			same = append(same, r)
		}
	}
	return same, nil
}

// equal reports whether two records say the same.
func (r *record) equal(other *record) bool {
	a, b := row{record: *r}, row{record: *other}
	return string(a.encode()) == string(b.encode())
}

func (k *keeper) writeNarinfos(rows []resigned) error {
	files, synced := make([]string, len(rows)), make([]string, len(rows))
	for i, r := range rows {
		file, err := k.c.scratch.write(formatNarinfo(r.signed))
		if err != nil {
			return fmt.Errorf("write narinfo of %s: %w", r.signed.info.Path, err)
		}
		files[i], synced[i] = file, path.Join(k.c.scratch.dir, file)
	}
	if err := k.syncNames(synced); err != nil {
		return err
	}
	folders := map[string]bool{}
	for i, r := range rows {
		if err := k.c.scratch.publish(k.c.root, files[i], r.key.narinfoName()); err != nil {
			return fmt.Errorf("publish narinfo of %s: %w", r.signed.info.Path, err)
		}
		folders[folder(r.key.domain)] = true
	}
	for dir := range folders {
		if err := syncFile(k.c.root, dir); err != nil {
			return err
		}
	}
	return nil
}

// refresh puts records that changed in place of those that memory holds.
func (c *Cache) refresh(rows []resigned) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	for _, r := range rows {
		if c.hot.Contains(r.key) {
			c.hot.Add(r.key, r.signed)
		}
	}
}

// AwaitVerified waits until a path that is still arriving in the domain is
// verified or failed. It returns at once for every other path.
func (c *Cache) AwaitVerified(ctx context.Context, domain string, p nix.StorePath) error {
	c.mu.Lock()
	pub := c.pending[keyOf(domain, p)]
	arriving := pub != nil && pub.arriving
	c.mu.Unlock()
	if !arriving {
		return nil
	}
	select {
	case <-pub.settled:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
