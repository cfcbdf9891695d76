package cache

import "errors"

// evictGroup bounds how many records go in one transaction, so that what is
// verified does not wait long.
const evictGroup = 64

const (
	// maxDeferred bounds the records that one transaction moves behind their
	// referrers.
	maxDeferred = 4096
	// maxIdle is how often in a row it is tried again when records were moved
	// and none removed. References in a circle, which no builder of good faith
	// makes, would move each other for ever.
	maxIdle = 64
)

// evict makes space: records that nobody pinned go, least recently used first,
// until the low watermark is reached or nothing is left to take. A path goes
// before what it refers to, so that no path is answered without as much of its
// closure as was ever here.
func (k *keeper) evict() {
	need := k.c.room.excess()
	if need <= 0 || k.c.retired.Load() != nil {
		return
	}
	k.writeRecency()
	plan := k.plan(need)
	if len(plan.victims)+len(plan.deferred) == 0 {
		return
	}
	if err := k.carryOut(plan); err != nil {
		k.c.log.Error("cannot evict", "err", err)
	} else if k.goesOn(plan) {
		k.evictSoon() // until there is no need
	}
}

func (k *keeper) carryOut(plan eviction) error {
	defer k.c.unclaim(plan.victims)
	victims, err := k.vacate(plan.victims)
	if err != nil {
		return err
	}
	freed, err := k.take(victims, plan.deferred)
	if err != nil {
		return err
	}
	k.c.counters.evictions.Add(int64(len(victims)))
	k.c.counters.evictedBytes.Add(freed)
	return nil
}

// evictSome evicts records worth need bytes, in one transaction, and returns how
// many went and how many moved behind what refers to them.
func (k *keeper) evictSome(need int64) (took, moved int, err error) {
	plan := k.plan(need)
	if len(plan.victims)+len(plan.deferred) == 0 {
		return 0, 0, nil
	}
	return len(plan.victims), len(plan.deferred), k.carryOut(plan)
}

func (k *keeper) goesOn(plan eviction) bool {
	if len(plan.victims) > 0 {
		k.idle = 0
		return true
	}
	k.idle++
	return k.idle <= maxIdle
}

// eviction is what one transaction of evict does.
type eviction struct {
	victims []key
	// deferred are records that others refer to, with the time that puts them
	// behind those in the order of use.
	deferred map[key]int64
}

// plan claims records worth need bytes.
func (k *keeper) plan(need int64) eviction {
	plan := eviction{deferred: map[key]int64{}}
	if err := k.c.holdPromised(); err != nil {
		k.c.log.Error("nothing is evicted", "err", err)
		return plan
	}
	gone := map[key]bool{}
	err := k.c.index.oldest(func(cand candidate) bool {
		if last, held := cand.heldUntil(gone); held {
			if last >= cand.lastUse {
				plan.deferred[cand.key] = last + 1
			}
			return len(plan.deferred) < maxDeferred
		}
		if k.c.claimToEvict(cand.key) {
			plan.victims, gone[cand.key] = append(plan.victims, cand.key), true
			need -= cand.cost
		}
		return need > 0 && len(plan.victims) < evictGroup
	})
	if err != nil {
		k.c.log.Error("cannot choose what to evict", "err", err)
	}
	return plan
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

// remove is take for who does not ask how much went.
func (k *keeper) remove(keys []key, deferred map[key]int64) error {
	_, err := k.take(keys, deferred)
	return err
}

// take takes records away and returns how many bytes that frees: narinfos first, then
// their rows, then the NARs that nothing names any more. A crash between leaves a row
// whose NAR is there, or a NAR that the next scan removes.
func (k *keeper) take(keys []key, deferred map[key]int64) (freed int64, err error) {
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
		for key, when := range deferred {
			if err := t.touch(key, when); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		k.c.lostTrack()
	} else {
		k.c.forget(keys)
		k.removeNARs(done.dropped)
		k.c.applied(done)
	}
	return -done.bytes, errors.Join(append(errs, err)...)
}

// lostTrack says that the index could not be written and lacks what is
// published, or has what is not: until the next start the files are asked too.
func (c *Cache) lostTrack() { c.lost.Store(true) }

// complete reports whether all that is published is in the index.
func (c *Cache) complete() bool { return !c.scanning.Load() && !c.lost.Load() }

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
	if !c.keeper.do(func() { err = c.keeper.dropBroken(k, rec) }) {
		c.forget([]key{k}) // who has the index drops it
	}
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
	return errors.Join(k.quarantine(file), k.remove([]key{name}, nil))
}
