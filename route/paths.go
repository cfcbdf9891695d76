package route

import (
	"hash/maphash"
	"sync"

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
// What it knows only breaks ties, so it may forget and be wrong.
type paths struct {
	limit int
	// seed makes the 64-bit hash that stands for a path unpredictable: nobody can
	// make up two paths that are taken for one.
	seed maphash.Seed

	mu sync.Mutex // below Router.mu; guards what follows
	// ids are by hash, not by name, since names are long and only asked for here.
	ids         *simplelru.LRU[uint64, PathID]
	generations []uint32          // by index; of the id that is valid now
	held        map[string]bitset // by builder; of indexes
}

func newPaths(limit int) *paths {
	ids, err := simplelru.NewLRU[uint64, PathID](limit, nil)
	if err != nil {
		panic(err) // only for a limit below 1, which New does not let through
	}
	return &paths{limit: limit, seed: maphash.MakeSeed(), ids: ids, held: map[string]bitset{}}
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
	for _, held := range p.held {
		held.remove(i)
	}
	return newPathID(i, p.generations[i])
}

func (p *paths) valid(id PathID) bool {
	return id.index() < len(p.generations) && p.generations[id.index()] == id.generation()
}

// keep forgets all builders but those, and makes room for them.
func (p *paths) keep(builders []*place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := make(map[string]bitset, len(builders))
	for _, b := range builders {
		held[b.Name] = p.held[b.Name]
	}
	p.held = held
}

func (p *paths) note(builder string, ids []PathID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	held, known := p.held[builder]
	if !known {
		return
	}
	for _, id := range ids {
		if p.valid(id) {
			held.add(id.index())
		}
	}
	p.held[builder] = held
}

func (p *paths) forget(builder string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.held[builder]; known {
		p.held[builder] = nil
	}
}

// fillMissing sets Missing of each candidate.
func (p *paths) fillMissing(candidates []Candidate, inputs []Input) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range candidates {
		candidates[i].Missing = p.missing(p.held[candidates[i].Name], inputs)
	}
}

func (p *paths) missing(held bitset, inputs []Input) int64 {
	var bytes int64
	for _, in := range inputs {
		if !held.has(in.ID.index()) || !p.valid(in.ID) {
			bytes += in.Size
		}
	}
	return bytes
}
