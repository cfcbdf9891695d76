package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// adoptEvery is how often it is looked at what predecessors offer and whether they
// live. Who misses a path looks at once.
const adoptEvery = 100 * time.Millisecond

// complainEvery is how often at most the log is told that this fails.
const complainEvery = 10 * time.Second

// predecessors are the processes that had the index before and have not ended, and
// those that ended and left what nobody has adopted.
type predecessors struct {
	some atomic.Bool // whether there are any

	adopting sync.Mutex // held while offers are adopted; before claims and Cache.mu

	mu  sync.Mutex // guards what follows; before Cache.mu
	all []*predecessor
}

// predecessor is one of them.
type predecessor struct {
	dir      string   // tmp/<pid>, below the cache's root
	root     *os.Root // of dir
	promised promisedReader
	held     []string // hash parts that are counted in Cache.pins for it
	// complained is when the log was told last that it cannot be followed. Guarded by
	// predecessors.adopting.
	complained time.Time
}

func openPredecessor(root *os.Root, dir string) (*predecessor, error) {
	sub, err := root.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &predecessor{dir: dir, root: sub, promised: promisedReader{root: sub}}, nil
}

// followPredecessors adopts what they offer until none is left, or ctx ends.
func (c *Cache) followPredecessors(ctx context.Context) {
	for c.predecessors.some.Load() && ctx.Err() == nil {
		c.adoptOffers()
		c.dismissDead()
		sleep(ctx, adoptEvery)
	}
}

func (p *predecessors) list() []*predecessor {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

// closeAll gives the folders free at the end of the cache.
func (p *predecessors) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.all {
		one.root.Close()
	}
	p.all = nil
}

// dismissDead wipes what belongs to predecessors that have ended, once all they
// offered was adopted, and lets go of what they were promised.
func (c *Cache) dismissDead() {
	for _, p := range c.predecessors.list() {
		lock, err := tryLock(c.root, p.dir+lockSuffix)
		if err != nil {
			continue // it lives
		}
		if offers, err := p.offers(); err == nil && len(offers) == 0 {
			c.dismiss(p)
		}
		lock.Close()
	}
}

// dismiss needs the lock of the predecessor.
func (c *Cache) dismiss(p *predecessor) {
	c.predecessors.adopting.Lock() // nobody looks for offers in what is being closed
	defer c.predecessors.adopting.Unlock()
	if err := wipe(c.root, p.dir); err != nil {
		c.log.Error("cannot wipe what a process left", "dir", p.dir, "err", err)
		return
	}
	all := &c.predecessors
	all.mu.Lock()
	defer all.mu.Unlock()
	p.root.Close()
	all.all = slices.DeleteFunc(all.all, func(o *predecessor) bool { return o == p })
	all.some.Store(len(all.all) > 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, hashPart := range p.held {
		c.unhold(hashPart)
	}
}

// holdPromised pins what predecessors have promised since the last call. If it
// fails nothing may be evicted.
func (c *Cache) holdPromised() error {
	if !c.predecessors.some.Load() {
		return nil
	}
	c.predecessors.mu.Lock()
	defer c.predecessors.mu.Unlock()
	for _, p := range c.predecessors.all {
		hashParts, err := p.promised.more()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it ended before it had promised anything
		}
		c.mu.Lock()
		for _, hashPart := range hashParts {
			c.pins[hashPart]++
		}
		c.mu.Unlock()
		p.held = append(p.held, hashParts...)
		if err != nil {
			return fmt.Errorf("read what %s has promised: %w", p.dir, err)
		}
	}
	return nil
}

// vacate takes the narinfos of claimed records away and returns those records that
// may go: a predecessor may have promised one since it was claimed.
func (k *keeper) vacate(keys []key) (gone []key, err error) {
	c := k.c
	if !c.predecessors.some.Load() {
		return keys, nil
	}
	for _, name := range keys {
		if err := c.root.Rename(name.narinfoName(), c.scratch.aside(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(err, c.scratch.putBack(c.root))
		}
	}
	if err := c.holdPromised(); err != nil {
		return nil, errors.Join(err, c.scratch.putBack(c.root))
	}
	var errs []error
	for _, name := range keys {
		c.mu.Lock()
		promised := c.pins[name.hashPart] > 0
		c.mu.Unlock()
		if promised {
			errs = append(errs, c.root.Rename(c.scratch.aside(name), name.narinfoName()))
			continue
		}
		errs = append(errs, removeIfThere(c.root, c.scratch.aside(name))) // before the row goes
		gone = append(gone, name)
	}
	return gone, errors.Join(errs...)
}
