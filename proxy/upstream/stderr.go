package upstream

import (
	"io"
	"sync"
	"sync/atomic"
)

// stderr takes what a program prints on its standard error. Its end is kept, to
// explain failures; all of it goes to whoever taps it.
type stderr struct {
	tail tail
	// taken counts the bytes that were handed on.
	taken atomic.Int64

	mu sync.Mutex // guards to; held while a piece is handed on, so that none comes after untap
	to io.Writer  // nil if nobody taps
}

func (s *stderr) Write(p []byte) (int, error) {
	s.tail.Write(p)
	s.mu.Lock()
	if s.to != nil {
		s.to.Write(p)
	}
	s.mu.Unlock()
	s.taken.Add(int64(len(p)))
	return len(p), nil
}

// tap hands everything from now on to w, also; nil ends that.
func (s *stderr) tap(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = w
}
