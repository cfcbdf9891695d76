package route

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// defaultPathLimit is how many paths have a number at once. With their table
// they take about 120 bytes each, 15 MB in all, and a bit for each builder.
const defaultPathLimit = 1 << 17

// PathID stands for a store path. Numbers of paths that were not asked for in a
// long time are given out again, in a later generation: an id of an earlier one
// then stands for nothing, and no builder holds it. The zero PathID does so from
// the beginning.
type PathID uint64

func newPathID(index int, generation uint32) PathID {
	return PathID(uint64(generation)<<32 | uint64(uint32(index)))
}

func (id PathID) index() int         { return int(uint32(id)) }
func (id PathID) generation() uint32 { return uint32(id >> 32) }

// paths gives paths their numbers and remembers which builder holds what.
// What it knows only weighs in estimates, so it may forget and be wrong.
type paths struct {
	limit int
	// seed makes the 64-bit hash that stands for a path unpredictable: nobody can
	// make up two paths that are taken for one.
	seed maphash.Seed

	mu sync.Mutex // below Router.mu; guards what follows
	// ids are by hash, not by name, since names are long and only asked for here.
	ids         *simplelru.LRU[uint64, PathID]
	generations []uint32 // by index; of the id that is valid now
	stores      map[*store]bool
}

// store is what a builder is known to hold. Guarded by paths.mu.
type store struct {
	held bitset // of indexes
	// changes counts what came and went. It is read by anybody.
	changes atomic.Uint32
}

func newPaths(limit int) *paths {
	ids, err := simplelru.NewLRU[uint64, PathID](limit, nil)
	if err != nil {
		panic(err) // only for a limit below 1, which New does not let through
	}
	return &paths{limit: limit, seed: maphash.MakeSeed(), ids: ids, stores: map[*store]bool{}}
}

func (p *paths) intern(path string) PathID {
	key := maphash.String(p.seed, path)
	p.mu.Lock()
	defer p.mu.Unlock()
	if id, known := p.ids.Get(key); known {
		return id
	}
	id := p.newID()
	p.ids.Add(key, id)
	return id
}

// newID takes a number that was never used or the one unused for longest.
func (p *paths) newID() PathID {
	if len(p.generations) < p.limit {
		p.generations = append(p.generations, 1)
		return newPathID(len(p.generations)-1, 1)
	}
	_, oldest, _ := p.ids.RemoveOldest()
	i := oldest.index()
	p.generations[i]++
	for s := range p.stores {
		s.held.remove(i)
	}
	return newPathID(i, p.generations[i])
}

func (p *paths) valid(id PathID) bool {
	return id.index() < len(p.generations) && p.generations[id.index()] == id.generation()
}

// newStore makes one of which nothing is known, until drop.
func (p *paths) newStore() *store {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &store{}
	s.changes.Add(1)
	p.stores[s] = true
	return s
}

func (p *paths) drop(s *store) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.stores, s)
}

// note adds inputs to a store and returns those that were not known to be there.
func (p *paths) note(s *store, inputs []Input) (added []PathID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stores[s] {
		return nil
	}
	for i, in := range inputs {
		if p.valid(in.ID) && !s.held.has(in.ID.index()) {
			s.held.add(in.ID.index())
			if added == nil {
				added = make([]PathID, 0, len(inputs)-i)
			}
			added = append(added, in.ID)
		}
	}
	if added != nil {
		s.changes.Add(1)
	}
	return added
}

// unnote takes paths away again.
func (p *paths) unnote(s *store, ids []PathID) {
	if len(ids) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if p.valid(id) {
			s.held.remove(id.index())
		}
	}
	s.changes.Add(1)
}

func (p *paths) forget(s *store) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.held = nil
	s.changes.Add(1)
}

// missing sums what a store lacks, and says by which change that was.
func (p *paths) missing(s *store, inputs []Input) (bytes int64, changes uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, in := range inputs {
		if !s.held.has(in.ID.index()) || !p.valid(in.ID) {
			bytes += in.Size
		}
	}
	return bytes, s.changes.Load()
}
