package cache

import (
	"errors"
	"io/fs"
	"path"
)

// evictGroup bounds how many records go in one transaction, so that what is
// verified does not wait long.
const evictGroup = 64

// evict makes space: records that nobody pinned go, least recently used first,
// until the low watermark is reached or nothing is left to take.
func (k *keeper) evict() {
	need := k.c.room.excess()
	if need <= 0 {
		return
	}
	k.writeRecency()
	victims := k.victims(need)
	if len(victims) == 0 {
		return
	}
	if err := k.remove(victims); err != nil {
		k.c.log.Error("cannot evict", "err", err)
	} else {
		k.c.counters.evictions.Add(int64(len(victims)))
		k.evictSoon() // until there is no need
	}
	k.c.unclaim(victims)
}

// victims claims records worth need bytes.
func (k *keeper) victims(need int64) []key {
	var chosen []key
	err := k.c.index.oldest(func(cand candidate) bool {
		if k.c.claimToEvict(cand.key) {
			chosen = append(chosen, cand.key)
			need -= cand.cost
		}
		return need > 0 && len(chosen) < evictGroup
	})
	if err != nil {
		k.c.log.Error("cannot choose what to evict", "err", err)
	}
	return chosen
}

// claimToEvict claims a record unless somebody holds on to it.
func (c *Cache) claimToEvict(k key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pins[k.hashPart] > 0 || c.claims[k.hashPart] != nil || c.pending[k] != nil {
		return false
	}
	c.claims[k.hashPart] = &claim{done: make(chan struct{}), evicting: true, domain: k.domain}
	return true
}

func (c *Cache) unclaim(keys []key) {
	for _, k := range keys {
		c.mu.Lock()
		held := c.claims[k.hashPart]
		c.mu.Unlock()
		c.releaseClaim(k.hashPart, held)
	}
}

// remove takes records away: narinfos first, then their rows, then the NARs that
// nothing names any more. A crash between leaves a row whose NAR is there, or a
// NAR that the next scan removes.
func (k *keeper) remove(keys []key) error {
	var errs []error
	for _, key := range keys {
		errs = append(errs, removeIfThere(k.c.root, key.narinfoName()))
	}
	done, err := k.c.index.update(func(t *indexTx) error {
		for _, key := range keys {
			if err := t.delete(key); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		k.c.forget(keys)
		k.removeNARs(done.dropped)
		k.c.applied(done)
	}
	return errors.Join(append(errs, err)...)
}

func (c *Cache) forget(keys []key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	for _, k := range keys {
		c.hot.Remove(k)
		delete(c.touched, k)
	}
}

// dropBroken removes a record whose NAR is missing or has the wrong length, so
// that it is a miss from now on. What is left of the NAR goes to quarantine.
func (c *Cache) dropBroken(k key, rec *record) error {
	var err error
	c.keeper.do(func() { err = c.keeper.dropBroken(k, rec) })
	return err
}

func (k *keeper) dropBroken(name key, rec *record) error {
	file := narName(rec.info.NarHash)
	recs, err := k.c.index.find([]key{name})
	if err != nil || recs[0] == nil || !recs[0].sameBytes(rec) || hasLength(k.c.root, file, rec.info.NarSize) {
		return err // somebody else came first
	}
	k.c.log.Warn("dropped a path whose NAR is missing or has the wrong length", "path", rec.info.Path)
	k.c.counters.broken.Add(1)
	return errors.Join(k.remove([]key{name}), k.quarantine(file))
}

// quarantine moves a file away, if it is there.
func (k *keeper) quarantine(file string) error {
	err := k.c.root.Rename(file, path.Join(quarantineDir, path.Base(file)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
