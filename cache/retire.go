package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
)

// Two processes may use one directory while one takes the place of the other. One
// has the index, and alone changes what is published and evicts. The other, which
// retired, reads what is published, keeps what it was asked for by promises
// (promised.go), and offers what it takes in (offer): the first adopts that
// (adopt.go). Neither needs the other to live: all that passes between them
// are files in the folder of the retired process.
//
//	tmp/<pid>/promised         hash parts that may not be evicted
//	tmp/<pid>/out/<n>/         one path with its NAR and narinfos, on offer

const (
	outDir      = "out"
	offeredNAR  = "nar"
	offerDigits = 12 // of <n>: names in order are offers in order
)

// retirement is what a process has that has given the index away.
type retirement struct {
	promises *promises
}

// errRetired is why a retired process does not do what needs the index.
var errRetired error = errors.New("this process has given the store to another, which takes its place")

// Retire gives the index to another process, which may open the cache once Retire
// has returned. All that is verified is published by then. The cache goes on
// answering about paths, taking them in and handing them out; it evicts, signs
// anew and lists nothing any more. Close is still called in the end, and leaves
// what is on offer to the other process. After an error the index is kept.
func (c *Cache) Retire(ctx context.Context) error {
	if c.retired.Load() != nil {
		return errRetired
	}
	if err := c.flush(ctx.Done()); err != nil { // most of it, while all goes its usual way
		return fmt.Errorf("publish what is verified: %w", err)
	}
	if err := c.scratch.root.Mkdir(outDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	list, err := newPromises(c.scratch.root)
	if err != nil {
		return err
	}
	c.endBackground()
	if !c.keeper.always(func() { err = c.keeper.retire(list) }) {
		err = ErrClosed
	}
	if err == nil {
		err = c.flush(nil) // what was on its way meanwhile is published or on offer
	}
	if err != nil {
		return errors.Join(err, c.Reclaim(ctx))
	}
	if err := c.index.close(c.complete()); err != nil {
		return errors.Join(err, c.Reclaim(ctx))
	}
	return nil
}

// Shared reports whether another process uses the directory too: one that has the index
// since Retire, or one that had it before and has not ended.
func (c *Cache) Shared() bool { return c.retired.Load() != nil || c.predecessors.some.Load() }

// retire runs on the keeper's goroutine: nothing is being published or evicted.
func (k *keeper) retire(list *promises) error {
	k.writeRecency()
	k.publishUntil(k.lockGiving())
	defer k.giving.Unlock()
	c := k.c
	c.mu.Lock()
	held := make([]string, 0, len(c.pins))
	for hashPart := range c.pins {
		held = append(held, hashPart)
	}
	c.retired.Store(&retirement{promises: list})
	c.hot.Purge() // from now on it has only what is promised
	c.changes++
	c.mu.Unlock()
	c.room.forget()
	_, err := list.add(held)
	return err
}

// lockGiving locks giving, which is done when the channel is closed: those who queue wait
// for the keeper to take something out, and nobody comes any more.
func (k *keeper) lockGiving() <-chan struct{} {
	locked := make(chan struct{})
	go func() {
		k.giving.Lock()
		close(locked)
	}()
	return locked
}

// publishUntil publishes what is queued until done is closed and nothing is any more.
func (k *keeper) publishUntil(done <-chan struct{}) {
	for {
		select {
		case p := <-k.verified:
			k.publish(k.queued([]*publication{p}))
		case <-done:
			rest := k.queued(nil)
			if len(rest) == 0 {
				return
			}
			k.publish(rest)
		}
	}
}

// queued adds to a group what is queued, as far as there is room.
func (k *keeper) queued(group []*publication) []*publication {
	for len(group) < groupSize {
		select {
		case p := <-k.verified:
			group = append(group, p)
		default:
			return group
		}
	}
	return group
}

// Reclaim takes the index back after Retire, when the other process has ended
// before it served anybody.
func (c *Cache) Reclaim(ctx context.Context) error {
	r := c.retired.Load()
	if r == nil {
		return nil
	}
	incomplete := !c.complete()
	if !c.index.isOpen() {
		again, err := c.index.reopen(c.log)
		if err != nil {
			return fmt.Errorf("take the index back: %w", err)
		}
		incomplete = again
	}
	bytes, paths, err := c.index.totals()
	if err != nil {
		return err
	}
	var again []*publication
	c.keeper.always(func() {
		c.keeper.giving.Lock() // those who offer need nothing of us
		defer c.keeper.giving.Unlock()
		c.room.setStored(bytes)
		c.counters.paths.Store(paths)
		again = c.unretire()
	})
	r.promises.close()
	err = errors.Join(c.scratch.root.RemoveAll(outDir), removeIfThere(c.scratch.root, promisedName))
	for _, p := range again {
		c.keeper.submit(p)
	}
	c.beginBackground(ctx, incomplete)
	return err
}

// unretire makes publications of what is on offer, which nobody may have adopted. What
// is on its way to be queued goes on.
func (c *Cache) unretire() []*publication {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired.Store(nil)
	c.hot.Purge()
	c.changes++
	again := map[*publication]*publication{}
	for k, old := range c.pending {
		if old.arriving || !isClosed(old.published) {
			continue
		}
		p := again[old]
		if p == nil {
			p = newPublication(old.spool)
			p.records = old.records
			close(p.settled)
			again[old] = p
		}
		c.pending[k] = p
	}
	list := make([]*publication, 0, len(again))
	for _, p := range again {
		list = append(list, p)
	}
	return list
}

// offer gives a verified path to the process that has the index. It stays ours to
// read: the other gets another name of the NAR, in one step with the narinfos.
func (c *Cache) offer(p *publication) {
	items := c.itemsOf([]*publication{p})
	err := p.publishErr
	if err == nil && len(items) > 0 {
		err = c.offerItems(p, items)
	}
	if err != nil {
		c.counters.unpublished.Add(1)
		c.log.Error("a verified path cannot be given to the process that has the index", "err", err)
		p.publishErr = err
	}
	n := p.spool.share.n
	p.spool.share.end()
	c.room.store(n)
	close(p.published)
}

func (c *Cache) offerItems(p *publication, items []item) error {
	s := c.scratch
	number := fmt.Sprintf("%0*d", offerDigits, s.next.Add(1))
	dir := "offer-" + number
	if err := s.root.Mkdir(dir, 0o700); err != nil {
		return diskError(err)
	}
	err := s.root.Link(p.spool.name, path.Join(dir, offeredNAR))
	hashParts := make([]string, 0, len(items))
	for _, it := range items {
		if err == nil {
			err = s.root.WriteFile(path.Join(dir, it.key.flatName()), formatNarinfo(it.rec), 0o600)
		}
		hashParts = append(hashParts, it.key.hashPart)
	}
	if err == nil {
		_, err = c.retired.Load().promises.add(hashParts)
	}
	if err == nil {
		err = s.root.Rename(dir, path.Join(outDir, number))
	}
	if err != nil {
		return errors.Join(diskError(err), s.root.RemoveAll(dir))
	}
	return nil
}

// readPublished is read for a process without the index: it asks the files. What it
// finds is promised before it is believed.
func (c *Cache) readPublished(r *retirement, keys []key) []*record {
	recs := make([]*record, len(keys))
	var found []string
	for i, k := range keys {
		if recs[i] = c.stray(k); recs[i] != nil {
			found = append(found, k.hashPart)
		}
	}
	fresh, err := r.promises.add(found)
	if err != nil && c.retired.Load() != r { // the index was taken back meanwhile
		return c.read(keys)
	}
	if err != nil {
		c.log.Error("cannot keep paths from the process that has the index", "err", err)
		return make([]*record, len(keys))
	}
	if fresh { // between the look and the promise they may have been evicted
		for i, k := range keys {
			if recs[i] != nil {
				recs[i] = c.stray(k)
			}
		}
	}
	return recs
}

// flatName names a narinfo in a folder with those of all domains.
func (k key) flatName() string { return k.domain + "_" + k.hashPart + narinfoSuffix }

// parseFlatName reads what flatName wrote.
func parseFlatName(name string) (key, error) {
	at := len(name) - len(narinfoSuffix) - hashPartLen
	if at < 1 || name[at-1] != '_' || name[at+hashPartLen:] != narinfoSuffix || !isHashPart(name[at:at+hashPartLen]) {
		return key{}, errors.New("not the name of a narinfo: " + strconv.Quote(name))
	}
	k := key{domain: name[:at-1], hashPart: name[at : at+hashPartLen]}
	if k.domain != publicDomain {
		return k, checkDomain(k.domain)
	}
	return k, nil
}
