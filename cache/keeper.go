package cache

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// groupSize and groupDelay bound a group commit: so many paths share its
	// syncs, and so long the first of them waits for others.
	groupSize  = 50
	groupDelay = 50 * time.Millisecond
	// recencyEvery is how often it is written which paths were used.
	recencyEvery = 30 * time.Second
	// touchGroup bounds the paths of one such transaction: until its end, each page
	// of the index that it changes is in memory.
	touchGroup = 4096
)

// keeper is the one goroutine that changes published files and the index: so a
// NAR that is about to be named is never removed, and nothing here needs a lock.
type keeper struct {
	c        *Cache
	verified chan *publication
	tasks    chan func()
	hurried  chan struct{}
	crowded  chan struct{}
	recency  chan struct{}
	ended    chan struct{}
	// giving is read-locked by those who queue or offer, and locked while the index is
	// given away or taken back: nobody queues behind the one, or offers behind the other.
	giving sync.RWMutex
	// domains whose folders are known to exist. Only the goroutine uses it.
	domains map[string]bool
	// idle counts evictions in a row that removed nothing, likewise.
	idle int
}

func newKeeper(c *Cache) *keeper {
	return &keeper{
		c:        c,
		verified: make(chan *publication, 1024), // beyond it, uploads wait for the disk
		tasks:    make(chan func()),
		hurried:  make(chan struct{}, 1),
		crowded:  make(chan struct{}, 1),
		recency:  make(chan struct{}, 1),
		ended:    make(chan struct{}),
		domains:  map[string]bool{},
	}
}

func (k *keeper) run(ctx context.Context) {
	defer close(k.ended)
	tick := time.NewTicker(recencyEvery)
	defer tick.Stop()
	hourly := time.NewTicker(quarantineEvery)
	defer hourly.Stop()
	k.tidyQuarantine()
	for {
		select {
		case p := <-k.verified:
			k.publish(k.collect(p))
		case task := <-k.tasks:
			task()
		case <-k.crowded:
			k.evict()
		case <-k.recency:
			k.writeRecency()
		case <-tick.C:
			k.writeRecency()
		case <-hourly.C:
			k.tidyQuarantine()
		case <-ctx.Done():
			k.writeRecency()
			return
		}
	}
}

func (k *keeper) tidyQuarantine() {
	if k.c.retired.Load() != nil {
		return
	}
	if err := k.trimQuarantine(); err != nil {
		k.c.log.Error("cannot look through the quarantine", "err", err)
	}
}

// collect gathers what is verified until there is enough or the first waited
// long enough.
func (k *keeper) collect(first *publication) []*publication {
	group := []*publication{first}
	timer := time.NewTimer(groupDelay)
	defer timer.Stop()
	hurried := k.hurried
	for len(group) < groupSize {
		select {
		case p := <-k.verified:
			group = append(group, p)
			continue
		default:
		}
		select {
		case p := <-k.verified:
			group = append(group, p)
		case <-hurried:
			return group
		case <-timer.C:
			return group
		}
	}
	return group
}

// submit hands over what was verified. A large NAR is synced alone before, so
// that it does not hold up the small ones, but for those that refer to it: no path is
// on disk before what it refers to.
func (k *keeper) submit(p *publication) {
	if k.offer(p) {
		return
	}
	large, before := p.spool.size() >= syncAlone, k.c.unqueued(p)
	if !large && len(before) == 0 {
		k.queue(p)
		return
	}
	k.c.wg.Go(func() {
		if large {
			if err := p.spool.sync(); err != nil {
				p.publishErr = err
			}
		}
		for _, ref := range before {
			<-ref.queued
		}
		k.queue(p)
	})
}

func (k *keeper) queue(p *publication) {
	k.giving.RLock()
	defer k.giving.RUnlock()
	if k.c.retired.Load() == nil {
		k.verified <- p
	} else {
		k.c.offer(p)
	}
	close(p.queued)
}

// offer is queue where another process has the index. Elsewhere it reports false.
func (k *keeper) offer(p *publication) bool {
	k.giving.RLock()
	defer k.giving.RUnlock()
	if k.c.retired.Load() == nil {
		return false
	}
	k.c.offer(p)
	close(p.queued)
	return true
}

// unqueued are the publications of what p refers to that are verified and not with
// the keeper yet. Each will be: it waits for nobody but those that it refers to itself.
func (c *Cache) unqueued(p *publication) []*publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []*publication
	for k, rec := range p.records {
		for _, ref := range rec.info.References {
			for _, domain := range []string{k.domain, publicDomain} {
				other := c.pending[keyOf(domain, ref)]
				if other != nil && other != p && !other.arriving && !isClosed(other.queued) {
					found = append(found, other)
				}
			}
		}
	}
	return found
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// do runs a task on the keeper's goroutine and waits for it. It reports false if
// the keeper has ended, or the index is another process's.
func (k *keeper) do(task func()) (did bool) {
	ran := k.always(func() {
		if did = k.c.retired.Load() == nil; did {
			task()
		}
	})
	return ran && did
}

// always is do for those who give the index away and take it back.
func (k *keeper) always(task func()) bool {
	done := make(chan struct{})
	select {
	case k.tasks <- func() { defer close(done); task() }:
		<-done
		return true
	case <-k.ended:
		return false
	}
}

// hurry ends the waiting for a fuller group.
func (k *keeper) hurry() { wake(k.hurried) }

// evictSoon asks for space. It never waits.
func (k *keeper) evictSoon() { wake(k.crowded) }

func (k *keeper) touchSoon() { wake(k.recency) }

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// writeRecency notes in the index which paths were used since the last time.
func (k *keeper) writeRecency() {
	touched := k.c.takeTouched()
	if k.c.retired.Load() != nil {
		return
	}
	keys := slices.SortedFunc(maps.Keys(touched), key.compare) // neighbours share pages of the index
	for some := range slices.Chunk(keys, touchGroup) {
		_, err := k.c.index.update(func(t *indexTx) error {
			for _, key := range some {
				if err := t.touch(key, touched[key]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			k.c.log.Error("cannot write which paths were used", "err", err)
			return
		}
	}
}

// takeTouched takes what was touched, apart from paths that are not in the index
// yet: they enter it as just used.
func (c *Cache) takeTouched() map[key]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	touched := c.touched
	c.touched = map[key]int64{}
	return touched
}
