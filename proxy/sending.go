package proxy

import (
	"context"
	"sync"

	"nixbastion/internal/nix"
)

// sending is what is on its way to which builder, so that no two sessions send it
// there at the same time: a daemon reads an upload to its end before it looks
// whether another brought the path meanwhile.
type sending struct {
	mu sync.Mutex
	by map[heldInput]*sender
}

// sender is who sends paths to a builder: the push of a build, or a feed.
type sender struct {
	paths []heldInput
	done  chan struct{} // closed when it sends no more, whatever came of it
	// yield is called by those who would have to wait. It ends a sender that has
	// not all bytes yet; nil for one that has.
	yield func()
}

func newSending() *sending { return &sending{by: map[heldInput]*sender{}} }

// claim claims those of paths, sorted so that references come first, that nobody
// sends to a builder, and that refer to none that somebody does. Who gets any calls
// release when they are sent, or will not be, and waits for nobody before that. The
// others are on their way by the senders that are returned.
func (s *sending) claim(builder string, paths []*nix.PathInfo, yield func()) (mine []*nix.PathInfo, own *sender, others []*sender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own = &sender{done: make(chan struct{}), yield: yield}
	blocked, seen := map[nix.StorePath]bool{}, map[*sender]bool{}
	for _, info := range paths {
		other := s.by[heldInput{builder, info.Path}]
		if other != nil && !seen[other] {
			seen[other] = true
			others = append(others, other)
		}
		if other != nil || refersTo(info, blocked) {
			blocked[info.Path] = true
			continue
		}
		mine = append(mine, info)
	}
	for _, info := range mine {
		key := heldInput{builder, info.Path}
		own.paths = append(own.paths, key)
		s.by[key] = own
	}
	return mine, own, others
}

func refersTo(info *nix.PathInfo, paths map[nix.StorePath]bool) bool {
	if len(paths) == 0 {
		return false
	}
	for _, ref := range info.References {
		if paths[ref] {
			return true
		}
	}
	return false
}

// release ends what claim began, and wakes who waits.
func (s *sending) release(own *sender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range own.paths {
		delete(s.by, key)
	}
	close(own.done)
}

// has reports whether a path is on its way to a builder.
func (s *sending) has(builder string, path nix.StorePath) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[heldInput{builder, path}] != nil
}

// await waits until others send no more. Those that have not all bytes themselves
// are not waited for longer than it takes to end them.
func await(ctx context.Context, others []*sender) error {
	for _, other := range others {
		if other.yield != nil {
			other.yield()
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
