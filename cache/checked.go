package cache

import (
	"hash/maphash"
	"os"
	"sync"
	"syscall"
	"time"

	"nixbastion/internal/nix"
)

const (
	// recheckAfter is after how long at most a NAR is hashed again when it is read;
	// after half of it at least.
	recheckAfter = 7 * 24 * time.Hour
	// maxChecked bounds one generation of what was checked. An entry takes about
	// 20 bytes, so the two take up to 20 MiB.
	maxChecked = 1 << 19
)

// fileID tells a file from another one that had the same name before or will have
// it, and from itself before it was written to.
type fileID struct {
	dev, ino    uint64
	mtime, size int64
}

func idOf(info os.FileInfo) fileID {
	id := fileID{mtime: info.ModTime().UnixNano(), size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.dev, id.ino = uint64(st.Dev), st.Ino
	}
	return id
}

// checkedNARs remembers which files of NARs this process has read and found to be
// what they should be. There are two generations of fingerprints: the young one
// takes what is checked, and becomes the old one when it is full or half of the
// time is over, while the old one is forgotten. So memory is bounded and nothing
// stays for longer than recheckAfter without a list in the order of time. What is
// forgotten too early is only hashed once more.
type checkedNARs struct {
	seed maphash.Seed
	now  func() time.Time

	mu         sync.Mutex // comes after all others
	young, old map[uint64]struct{}
	since      time.Time // when the young generation began
}

func newCheckedNARs(now func() time.Time) *checkedNARs {
	return &checkedNARs{seed: maphash.MakeSeed(), now: now, young: map[uint64]struct{}{}, since: now()}
}

func (s *checkedNARs) mark(narHash nix.Hash, id fileID) uint64 {
	return maphash.Comparable(s.seed, struct {
		nix.Hash
		fileID
	}{narHash, id})
}

// has reports whether the file was checked, and not too long ago.
func (s *checkedNARs) has(narHash nix.Hash, id fileID) bool {
	mark := s.mark(narHash, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age()
	_, young := s.young[mark]
	_, old := s.old[mark]
	return young || old
}

func (s *checkedNARs) add(narHash nix.Hash, id fileID) {
	mark := s.mark(narHash, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age()
	s.young[mark] = struct{}{}
}

// age begins a new generation if it is time. s.mu is held.
func (s *checkedNARs) age() {
	now := s.now()
	switch elapsed := now.Sub(s.since); {
	case elapsed >= recheckAfter:
		s.old, s.since = nil, now
	case elapsed >= recheckAfter/2:
		s.old, s.since = s.young, s.since.Add(recheckAfter/2)
	case len(s.young) >= maxChecked:
		s.old, s.since = s.young, now
	default:
		return
	}
	s.young = map[uint64]struct{}{}
}
