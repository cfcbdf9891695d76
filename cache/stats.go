package cache

import "sync/atomic"

type counters struct {
	paths, hits, misses, evictions, evictedBytes, differing, added, broken, corrupt, unpublished, quarantined, quarantinedBytes, scrubbed atomic.Int64
}

// Stats are sums since the cache was opened, but for Bytes, Paths, Arriving and
// those of the quarantine, which are as of now, and Limit.
type Stats struct {
	Bytes       int64 // taken by NARs in blocks of 4 KiB, those on their way included
	Limit       int64 // what they may take (Options.Size)
	Paths       int64 // durable paths, counted once per domain
	Arriving    int64 // paths announced or verified that are not durable yet
	Hits        int64 // paths asked for that were there
	Misses      int64 // paths asked for that were not
	Added       int64 // paths that became valid
	Differing   int64 // verified and discarded, since the path was valid with other bytes
	Evictions   int64 // paths removed to make space
	Broken      int64 // paths removed since their NAR was missing or wrong
	Corrupt     int64 // NARs put into quarantine since their bytes were wrong
	Unpublished int64 // verified paths that could not be written to disk
	Scrubbed    int64 // bytes of NARs that were read again in the background
	// EvictedBytes is what Evictions took, in the measure of Bytes: nothing for a NAR that
	// other paths still have.
	EvictedBytes int64
	// Quarantined files take QuarantinedBytes beside Bytes, as of now.
	Quarantined, QuarantinedBytes int64
}

// Stats returns the numbers of the cache.
func (c *Cache) Stats() Stats {
	n := &c.counters
	c.mu.Lock()
	arriving := int64(len(c.pending))
	c.mu.Unlock()
	return Stats{
		Bytes: c.room.bytes(), Limit: c.room.size, Paths: n.paths.Load(), Arriving: arriving,
		Hits: n.hits.Load(), Misses: n.misses.Load(), Added: n.added.Load(), Differing: n.differing.Load(),
		Evictions: n.evictions.Load(), EvictedBytes: n.evictedBytes.Load(), Broken: n.broken.Load(), Corrupt: n.corrupt.Load(), Unpublished: n.unpublished.Load(),
		Scrubbed: n.scrubbed.Load(), Quarantined: n.quarantined.Load(), QuarantinedBytes: n.quarantinedBytes.Load(),
	}
}
