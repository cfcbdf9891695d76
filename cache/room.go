package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"nixbastion/internal/nix"
)

// roomWait is how long a path waits for space before it is refused. Until then
// the one who sends it feels back-pressure, which costs nothing but time.
const roomWait = 2 * time.Minute

// The watermarks, in percent of what build outputs may fill: above high the
// eviction starts, below low it stops.
const (
	highWatermark = 95
	lowWatermark  = 85
)

// blockSize is the unit in which file systems hand out space.
const blockSize = 4096

// cost is what a NAR of that size takes on disk, with its narinfo.
func cost(narSize uint64) int64 {
	return (int64(narSize)+blockSize-1)/blockSize*blockSize + blockSize
}

// purpose says which part of the space may be used.
type purpose uint8

const (
	forOutput purpose = iota // all but the reserve
	forUpload                // all
)

// room accounts for the space on disk, in bytes of whole blocks.
type room struct {
	size    int64 // what everything together may take
	reserve int64 // the part of it that only uploads may use
	crowded func()

	mu      sync.Mutex
	stored  int64         // published NARs
	claimed int64         // reserved by spools
	waiting int64         // asked for by those who wait
	freed   chan struct{} // closed and replaced when space was freed
}

func newRoom(size, reserve, stored int64, crowded func()) *room {
	return &room{size: size, reserve: reserve, crowded: crowded, stored: stored, freed: make(chan struct{})}
}

func (r *room) limit(p purpose) int64 {
	if p == forUpload {
		return r.size
	}
	return r.size - r.reserve
}

// excess returns how many bytes must go to come below the low watermark, or 0
// if the high one was not reached.
func (r *room) excess() int64 { return r.excessWith(0) }

// excessWith is excess if n bytes more are asked for.
func (r *room) excessWith(n int64) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	want, outputs := r.stored+r.claimed+r.waiting+n, r.limit(forOutput)
	if want <= outputs/100*highWatermark {
		return 0
	}
	return want - outputs/100*lowWatermark
}

// share is space held by one spool. It is not safe for concurrent use.
type share struct {
	r   *room
	use purpose
	n   int64
}

// grow reserves n bytes more. It waits up to [roomWait] for eviction to make
// space and then returns a UserError.
func (s *share) grow(ctx context.Context, n int64) error {
	limit := s.r.limit(s.use)
	if n > limit-s.n {
		return tooLarge(n+s.n, limit)
	}
	if s.take(n, limit) {
		return nil
	}
	timer := time.NewTimer(roomWait)
	defer timer.Stop()
	return s.wait(ctx, n, limit, timer.C)
}

func (s *share) wait(ctx context.Context, n, limit int64, timeout <-chan time.Time) error {
	s.r.await(n)
	defer s.r.await(-n)
	for {
		freed := s.r.change()
		s.r.crowded()
		if s.take(n, limit) {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("wait for space: %w", context.Cause(ctx))
		case <-timeout:
			return &nix.UserError{
				Message: fmt.Sprintf("the proxy's store is full: no room for %d bytes within %s", n, roomWait),
				Err:     errNoRoom,
			}
		}
	}
}

var errNoRoom = errors.New("no room")

func (s *share) take(n, limit int64) bool {
	s.r.mu.Lock()
	ok := s.r.stored+s.r.claimed+n <= limit
	if ok {
		s.r.claimed += n
		s.n += n
	}
	s.r.mu.Unlock()
	if ok && s.r.excess() > 0 {
		s.r.crowded()
	}
	return ok
}

// end gives the share back.
func (s *share) end() {
	s.r.mu.Lock()
	s.r.claimed -= s.n
	s.r.signal()
	s.r.mu.Unlock()
	s.n = 0
}

// force takes n bytes more whether there is room or not: they are on the disk.
func (s *share) force(n int64) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.claimed += n
	s.n += n
}

// forget leaves what is published to the process that has the index and makes room
// there. What this one takes in is still bounded by the size.
func (r *room) forget() { r.setStored(0) }

func (r *room) setStored(n int64) {
	r.mu.Lock()
	r.stored = n
	r.signal()
	r.mu.Unlock()
}

// store says that published NARs take n bytes more, or less.
func (r *room) store(n int64) {
	r.mu.Lock()
	r.stored += n
	r.signal()
	r.mu.Unlock()
}

// RoomFor tells beforehand of outputs of these sizes, in bytes of their NARs, what
// will not fit: more than the cache may ever hold, or more than the disk has left
// and eviction would make, as a UserError. Nothing is reserved: what fits now may
// find the disk full later.
func (c *Cache) RoomFor(narSizes ...uint64) error {
	var total int64
	limit := c.room.limit(forOutput)
	for _, size := range narSizes {
		if size > uint64(limit) || cost(size) > limit {
			return tooLarge(cost(size), limit)
		}
		total += cost(size)
	}
	free, err := freeSpace(c.scratch.lock)
	if err != nil {
		return err
	}
	if total > free+c.room.excessWith(total) {
		return diskError(fmt.Errorf("%d bytes are needed and %d left: %w", total, free, syscall.ENOSPC))
	}
	return nil
}

func tooLarge(n, limit int64) error {
	return nix.Refuse("%d bytes do not fit into the proxy's store, which may hold %d", n, limit)
}

// signal wakes who waits. r.mu is held.
func (r *room) signal() {
	close(r.freed)
	r.freed = make(chan struct{})
}

func (r *room) change() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.freed
}

func (r *room) await(n int64) {
	r.mu.Lock()
	r.waiting += n
	r.mu.Unlock()
}

// arriving reports whether spools hold space.
func (r *room) arriving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.claimed > 0
}

func (r *room) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stored + r.claimed
}
