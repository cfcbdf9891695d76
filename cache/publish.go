package cache

import (
	"errors"
	"fmt"
	"path"

	"nixbastion/internal/nix"
)

// group is what one group commit makes durable. Its steps run in an order that
// leaves nothing half-published whenever the power goes: contents are synced
// before they get their names, NARs get theirs before narinfos, and all names
// are synced before the index knows them. A publication that fails in one step
// is left out of the next.
type group struct {
	k     *keeper
	pubs  []*publication
	items []item
}

// item is one narinfo of a publication.
type item struct {
	pub  *publication
	key  key
	rec  *record
	file string // of the narinfo, in the scratch
}

func (k *keeper) publish(pubs []*publication) {
	g := &group{k: k, pubs: pubs, items: k.c.itemsOf(pubs)}
	g.each("write narinfo of", g.writeNarinfo)
	g.all("sync", g.syncContents)
	g.each("publish NAR of", g.nameNAR)
	g.each("publish narinfo of", g.nameNarinfo)
	g.all("sync folders", g.syncFolders)
	dropped := g.enterIndex()
	g.finish()
	k.removeNARs(dropped)
}

// itemsOf leaves out records that were superseded by a later publication.
func (c *Cache) itemsOf(pubs []*publication) []item {
	c.mu.Lock()
	defer c.mu.Unlock()
	var items []item
	for _, p := range pubs {
		for k, rec := range p.records {
			if c.pending[k] == p {
				items = append(items, item{pub: p, key: k, rec: rec})
			}
		}
	}
	return items
}

// each runs a step for every item of a publication that is well so far.
func (g *group) each(what string, step func(*item) error) {
	for i := range g.items {
		it := &g.items[i]
		if it.pub.publishErr != nil {
			continue
		}
		if err := step(it); err != nil {
			it.pub.publishErr = fmt.Errorf("%s %s: %w", what, it.rec.info.Path, err)
		}
	}
}

// all runs a step that succeeds or fails for all.
func (g *group) all(what string, step func() error) {
	if len(g.items) == 0 {
		return
	}
	if err := step(); err != nil {
		g.fail(fmt.Errorf("%s: %w", what, err))
	}
}

func (g *group) fail(err error) {
	for _, it := range g.items {
		if it.pub.publishErr == nil {
			it.pub.publishErr = err
		}
	}
}

func (g *group) writeNarinfo(it *item) (err error) {
	it.file, err = g.k.c.scratch.write(formatNarinfo(it.rec))
	return err
}

// syncFew is up to how many files are synced one by one. For more, one sync of
// the file system is cheaper.
const syncFew = 4

func (g *group) syncContents() error {
	var files []string
	for _, it := range g.items {
		files = append(files, path.Join(g.k.c.scratch.dir, it.file))
		if it.pub.spool.size() < syncAlone {
			files = append(files, path.Join(g.k.c.scratch.dir, it.pub.spool.name))
		}
	}
	return g.k.syncNames(files)
}

func (g *group) syncFolders() error {
	seen := map[string]bool{}
	var dirs []string
	for _, it := range g.items {
		for _, dir := range []string{path.Dir(narName(it.rec.info.NarHash)), folder(it.key.domain)} {
			if !seen[dir] {
				seen[dir] = true
				dirs = append(dirs, dir)
			}
		}
	}
	return g.k.syncNames(dirs)
}

func (k *keeper) syncNames(names []string) error {
	if len(names) > syncFew {
		return syncFileSystem(k.c.scratch.lock)
	}
	for _, name := range names {
		if err := syncFile(k.c.root, name); err != nil {
			return err
		}
	}
	return nil
}

// nameNAR gives the NAR its name, unless these bytes are there already.
func (g *group) nameNAR(it *item) error {
	name := narName(it.rec.info.NarHash)
	if hasLength(g.k.c.root, name, it.rec.info.NarSize) {
		return nil
	}
	return g.k.c.scratch.publish(g.k.c.root, it.pub.spool.name, name)
}

func (g *group) nameNarinfo(it *item) error {
	if err := g.k.makeDomain(it.key.domain); err != nil {
		return err
	}
	return g.k.c.scratch.publish(g.k.c.root, it.file, it.key.narinfoName())
}

func (k *keeper) makeDomain(domain string) error {
	if domain == publicDomain || k.domains[domain] {
		return nil
	}
	if err := makeDomain(k.c.root, domain); err != nil {
		return err
	}
	k.domains[domain] = true
	return syncFile(k.c.root, domainDir)
}

func (g *group) enterIndex() (dropped []nix.Hash) {
	now := g.k.c.now().UnixNano()
	done, err := g.k.c.index.update(func(t *indexTx) error {
		for _, it := range g.items {
			if it.pub.publishErr != nil {
				continue
			}
			if err := t.put(it.key, &row{record: *it.rec, lastUse: now}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		g.fail(err)
		g.k.c.lostTrack()
	}
	g.k.c.applied(done)
	return done.dropped
}

// applied adds what a transaction changed to the sums in memory.
func (c *Cache) applied(done changes) {
	c.room.store(done.bytes)
	c.counters.paths.Add(done.paths)
}

// finish moves the records from what is pending to what is read of the index,
// and gives back what the spools held.
func (g *group) finish() {
	g.k.c.promote(g.items)
	for _, p := range g.pubs {
		if p.publishErr != nil {
			g.k.c.counters.unpublished.Add(1)
			g.k.c.log.Error("a verified path is lost", "err", p.publishErr)
		}
		p.spool.discard(errors.New("it was published"))
		close(p.published)
	}
}

func (c *Cache) promote(items []item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	for _, it := range items {
		if c.pending[it.key] == it.pub {
			delete(c.pending, it.key)
		}
		if it.pub.publishErr == nil {
			c.hot.Add(it.key, it.rec)
		}
	}
}

// removeNARs removes NARs that no narinfo names any more. Whoever has one open
// reads on.
func (k *keeper) removeNARs(dropped []nix.Hash) {
	for _, narHash := range dropped {
		named, err := k.c.index.hasNAR(narHash)
		if err == nil && !named {
			err = removeIfThere(k.c.root, narName(narHash))
		}
		if err != nil {
			k.c.log.Error("cannot remove a NAR", "nar", narHash, "err", err)
		}
	}
}
