package cache

import "nixbastion/internal/nix"

// DefaultPinnedPaths is how many pins one owner may have if nobody said
// otherwise. One takes about 150 bytes.
const DefaultPinnedPaths = 200_000

// pinOwner is whoever is promised paths, in all sessions together.
type pinOwner struct {
	sessions int
	paths    int                  // pins of all sessions
	bytes    int64                // cost of what is held
	held     map[string]*ownedPin // by hash part
}

// ownedPin is a path that sessions of one owner pin, who pays for it once.
type ownedPin struct {
	sessions int
	cost     int64
}

// Pins keep paths from eviction, for as long as the session that was promised
// them. They may be used from any goroutine. Release them.
type Pins struct {
	c     *Cache
	name  string
	owner *pinOwner       // nil after Release
	held  map[string]*pin // by hash part
}

// pin is what a session holds of one path. Cache.mu guards it, and all of Pins.
type pin struct {
	asking int  // questions under way, which hold the path until they know
	kept   bool // promised
}

// NewPins returns the pins of one session. What all sessions of an owner pin
// together is bounded by [Options.PinnedPaths] and [Options.PinnedBytes]. Paths
// beyond it are answered but not kept, so that nobody alone can hold the whole
// store.
func (c *Cache) NewPins(owner string) *Pins {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.owners[owner]
	if o == nil {
		o = &pinOwner{held: map[string]*ownedPin{}}
		c.owners[owner] = o
	}
	o.sessions++
	return &Pins{c: c, name: owner, owner: o, held: map[string]*pin{}}
}

// QueryValidPaths is [Cache.QueryValidPaths] and Pin in one step: what it returns
// stays valid until Release.
func (p *Pins) QueryValidPaths(domain string, paths []nix.StorePath) []nix.StorePath {
	return p.c.validOf(paths, p.find(domain, paths))
}

// QueryPathInfo is [Cache.QueryPathInfo] and Pin in one step.
func (p *Pins) QueryPathInfo(domain string, path nix.StorePath) (*nix.PathInfo, error) {
	return p.c.infoOf(path, p.find(domain, []nix.StorePath{path})[0])
}

// find returns the records of paths that are visible in the domain, nil for the
// others, and keeps those that it found.
func (p *Pins) find(domain string, paths []nix.StorePath) []*record {
	if found := p.findInMemory(domain, paths); found != nil {
		return found
	}
	p.ask(paths)
	found := p.c.find(domain, paths)
	p.keep(paths, found)
	return found
}

// findInMemory is find where memory knows all of the paths, as it mostly does, and
// nil where it does not. The lock is taken once: with many clients it is what they
// all wait for.
func (p *Pins) findInMemory(domain string, paths []nix.StorePath) []*record {
	seen, found := make([]sight, len(paths)), make([]*record, len(paths))
	now := p.c.now()
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for i, path := range paths {
		if seen[i] = p.c.remembered(domain, path); !seen[i].known {
			return nil
		}
		found[i] = seen[i].rec
	}
	p.c.markUsed(seen, now)
	for i, path := range paths {
		if found[i] != nil && p.owner != nil {
			p.pin(path.HashPart(), cost(found[i].info.NarSize))
		}
	}
	return found
}

// pin keeps a path that is known to be there, within the bounds. It needs Cache.mu.
func (p *Pins) pin(hashPart string, bytes int64) {
	held := p.hold(hashPart)
	if !held.kept {
		p.promise(hashPart, held, bytes)
	}
	if !held.kept && held.asking == 0 {
		p.unpin(hashPart)
	}
}

// hold returns what the session holds of a path, from now on if it did not. It needs Cache.mu.
func (p *Pins) hold(hashPart string) *pin {
	held := p.held[hashPart]
	if held == nil {
		held = &pin{}
		p.held[hashPart] = held
		p.c.pins[hashPart]++
	}
	return held
}

// Pin keeps those of paths that are valid in the domain and returns them.
func (p *Pins) Pin(domain string, paths []nix.StorePath) []nix.StorePath {
	return p.QueryValidPaths(domain, paths)
}

// ask holds paths before it is asked whether they are valid: an eviction that
// has not begun by then will pass them by, one that has makes them invalid.
func (p *Pins) ask(paths []nix.StorePath) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.owner == nil {
		return
	}
	for _, path := range paths {
		p.hold(path.HashPart()).asking++
	}
}

// keep ends what ask began: paths that are valid stay held, within the bounds.
func (p *Pins) keep(paths []nix.StorePath, found []*record) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for i, path := range paths {
		hashPart := path.HashPart()
		held := p.held[hashPart]
		if held == nil {
			continue // released meanwhile
		}
		held.asking--
		if found[i] != nil && !held.kept {
			p.promise(hashPart, held, cost(found[i].info.NarSize))
		}
		if !held.kept && held.asking == 0 {
			p.unpin(hashPart)
		}
	}
}

// promise needs Cache.mu.
func (p *Pins) promise(hashPart string, held *pin, bytes int64) {
	o := p.owner
	owned := o.held[hashPart]
	if o.paths >= p.c.pinnedPaths || owned == nil && o.bytes+bytes > p.c.pinnedBytes {
		return
	}
	if owned == nil {
		owned = &ownedPin{cost: bytes}
		o.held[hashPart] = owned
		o.bytes += bytes
	}
	owned.sessions++
	o.paths++
	held.kept = true
}

// unpin needs Cache.mu.
func (p *Pins) unpin(hashPart string) {
	held := p.held[hashPart]
	delete(p.held, hashPart)
	if held.kept {
		p.owner.giveBack(hashPart)
	}
	p.c.unhold(hashPart)
}

func (o *pinOwner) giveBack(hashPart string) {
	o.paths--
	owned := o.held[hashPart]
	if owned.sessions--; owned.sessions == 0 {
		o.bytes -= owned.cost
		delete(o.held, hashPart)
	}
}

// Release gives all pins back. Later calls pin nothing.
func (p *Pins) Release() {
	p.release()
	if p.c.room.excess() > 0 {
		p.c.keeper.evictSoon()
	}
}

func (p *Pins) release() {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.owner == nil {
		return
	}
	for hashPart := range p.held {
		p.unpin(hashPart)
	}
	if p.owner.sessions--; p.owner.sessions == 0 {
		delete(p.c.owners, p.name)
	}
	p.owner = nil
}

// hold keeps paths from eviction while something that refers to them is on its
// way.
func (c *Cache) hold(paths []nix.StorePath) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, path := range paths {
		c.pins[path.HashPart()]++
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, path := range paths {
			c.unhold(path.HashPart())
		}
	}
}

// unhold needs Cache.mu.
func (c *Cache) unhold(hashPart string) {
	if c.pins[hashPart]--; c.pins[hashPart] == 0 {
		delete(c.pins, hashPart)
	}
}
