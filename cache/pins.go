package cache

import "nixbastion/internal/nix"

// Pins keep paths from eviction, for as long as the session that was promised
// them. They may be used from any goroutine.
type Pins struct {
	c     *Cache
	limit int
	held  map[string]bool // hash parts; guarded by Cache.mu; nil after Release
}

// NewPins returns pins for at most limit paths. Paths beyond it are answered but
// not kept, so that one session cannot hold the whole store.
func (c *Cache) NewPins(limit int) *Pins {
	return &Pins{c: c, limit: limit, held: map[string]bool{}}
}

// QueryValidPaths is [Cache.QueryValidPaths] and Pin in one step: what it returns
// stays valid until Release.
func (p *Pins) QueryValidPaths(domain string, paths []nix.StorePath) []nix.StorePath {
	fresh := p.hold(paths)
	valid := p.c.QueryValidPaths(domain, paths)
	p.letGo(fresh, valid)
	return valid
}

// Pin keeps those of paths that are valid in the domain and returns them.
func (p *Pins) Pin(domain string, paths []nix.StorePath) []nix.StorePath {
	return p.QueryValidPaths(domain, paths)
}

// hold pins paths before it is asked whether they are valid: an eviction that
// has not begun by then will pass them by, one that has makes them invalid.
func (p *Pins) hold(paths []nix.StorePath) (fresh map[string]bool) {
	fresh = map[string]bool{}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for _, path := range paths {
		hashPart := path.HashPart()
		if p.held == nil || p.held[hashPart] || len(p.held) >= p.limit {
			continue
		}
		p.held[hashPart], fresh[hashPart] = true, true
		p.c.pins[hashPart]++
	}
	return fresh
}

// letGo unpins what was pinned freshly and turned out not to be valid.
func (p *Pins) letGo(fresh map[string]bool, valid []nix.StorePath) {
	for _, path := range valid {
		delete(fresh, path.HashPart())
	}
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	for hashPart := range fresh {
		p.unpin(hashPart)
	}
}

// unpin needs Cache.mu.
func (p *Pins) unpin(hashPart string) {
	if !p.held[hashPart] {
		return // released meanwhile
	}
	delete(p.held, hashPart)
	if p.c.pins[hashPart]--; p.c.pins[hashPart] == 0 {
		delete(p.c.pins, hashPart)
	}
}

// Release gives all pins back. Later calls pin nothing.
func (p *Pins) Release() {
	p.c.mu.Lock()
	for hashPart := range p.held {
		p.unpin(hashPart)
	}
	p.held = nil
	p.c.mu.Unlock()
	if p.c.room.excess() > 0 {
		p.c.keeper.evictSoon()
	}
}
