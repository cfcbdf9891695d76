package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"nixbastion/internal/nix"
)

const (
	// heldBack is how many bytes at the end of a growing NAR its followers do
	// not get before it is verified. A NAR without its last 8 bytes is never
	// complete, so nobody sees a wrong one end cleanly.
	heldBack = 8
	// stride is after how many bytes the kernel is told to begin writing.
	stride = 8 << 20
	// syncAlone is from which size on a NAR is fsynced alone, in bytes. Smaller
	// ones share one sync of the file system.
	syncAlone = 1 << 20
)

// spool is a NAR on its way in: a temporary file with one writer and any number
// of followers. The writer never waits for a follower.
type spool struct {
	c     *Cache
	name  string // in the scratch
	file  *os.File
	share share
	// release lets go of what the path refers to.
	release func()
	// narHash is set by succeed, or before anybody follows.
	narHash nix.Hash

	mu      sync.Mutex
	written int64
	done    bool
	err     error         // why there will be no more; with done only
	changed chan struct{} // closed and replaced with every change; nil without followers
}

// newSpool makes a spool. Whoever gets it must discard it in the end; until then
// paths that refs names are kept from eviction.
func (c *Cache) newSpool(use purpose, refs []nix.StorePath) (*spool, error) {
	f, name, err := c.scratch.create()
	if err != nil {
		return nil, fmt.Errorf("make spool file: %w", err)
	}
	return &spool{c: c, name: name, file: f, share: share{r: c.room, use: use}, release: c.hold(refs)}, nil
}

// refer is for a spool whose references are known only behind its end.
func (s *spool) refer(refs []nix.StorePath) { s.release = s.c.hold(refs) }

// Write appends to the NAR. One goroutine writes.
func (s *spool) Write(p []byte) (int, error) {
	n, err := s.file.Write(p)
	s.mu.Lock()
	before := s.written
	s.written += int64(n)
	after := s.written
	s.broadcast()
	s.mu.Unlock()
	if before/stride != after/stride {
		startWriteback(s.file, before/stride*stride, stride)
	}
	return n, diskError(err)
}

// broadcast wakes the followers. s.mu is held.
func (s *spool) broadcast() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// succeed says that all was written and verified. The file is closed: what is
// verified keeps no descriptor.
func (s *spool) succeed(narHash nix.Hash) error {
	if err := s.file.Close(); err != nil {
		return err
	}
	s.narHash = narHash
	s.finish(nil)
	return nil
}

// discard removes the NAR. Followers of a verified one read on to its end, the
// others fail with err.
func (s *spool) discard(err error) {
	s.file.Close() // twice after succeed, which does no harm
	s.finish(err)
	if err := removeIfThere(s.c.scratch.root, s.name); err != nil {
		s.c.log.Error("cannot remove a spool file", "file", s.name, "err", err)
	}
	s.release()
	s.share.end()
}

func (s *spool) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.done, s.err = true, err
		s.broadcast()
	}
}

// size returns how many bytes were written.
func (s *spool) size() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(s.written)
}

// sync makes a verified NAR durable under its temporary name.
func (s *spool) sync() error { return syncFile(s.c.scratch.root, s.name) }

func syncFile(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// open opens the NAR with a descriptor of its own: where it is written, or where
// it was published in the meantime.
func (s *spool) open() (*os.File, error) {
	f, err := s.c.scratch.root.Open(s.name)
	if errors.Is(err, fs.ErrNotExist) && !s.narHash.IsZero() {
		return s.c.root.Open(narName(s.narHash))
	}
	return f, err
}

// follow returns a reader that follows the NAR to its end. Reads wait for the
// writer as long as ctx lives.
func (s *spool) follow(ctx context.Context) (io.ReadCloser, error) {
	f, err := s.open()
	if err != nil {
		return nil, err
	}
	return &follower{ctx: ctx, s: s, f: f}, nil
}

type follower struct {
	ctx    context.Context // of the one who reads, as Read takes none
	s      *spool
	f      *os.File
	offset int64
}

// Read returns what is there and waits if nothing is. It returns io.EOF only
// behind the last byte of a verified NAR.
func (f *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.s.await(f.ctx, f.offset)
	if err != nil {
		return 0, err
	}
	got, err := f.f.ReadAt(p[:min(int64(len(p)), n)], f.offset)
	f.offset += int64(got)
	if err == io.EOF { // the file is shorter than what was written
		err = io.ErrUnexpectedEOF
	}
	return got, err
}

func (f *follower) Close() error { return f.f.Close() }

// await returns how many bytes can be read from offset on, at least one.
func (s *spool) await(ctx context.Context, offset int64) (int64, error) {
	for {
		n, changed, err := s.readable(offset)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

func (s *spool) readable(offset int64) (n int64, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		return max(0, s.written-heldBack-offset), s.changed, nil
	}
	if s.err != nil {
		return 0, nil, fmt.Errorf("the path stopped arriving: %w", s.err)
	}
	if offset >= s.written {
		return 0, nil, io.EOF
	}
	return s.written - offset, nil, nil
}
