package cache

import (
	"context"
	"errors"
	"io"
	"os"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// growth is the step in which space is reserved for what has no declared size.
const growth = 4 << 20

// takeUnnamed streams a NAR of unknown size into the spool and has it named.
func (s *spool) takeUnnamed(ctx context.Context, r io.Reader, name func(nix.Hash, uint64) (*nix.PathInfo, error)) (*nix.PathInfo, error) {
	sha := nix.SHA256.New()
	archive := nar.NewReader(r)
	err := copyChunks(ctx, archive, func(p []byte) error {
		if err := s.share.cover(ctx, archive.Size()); err != nil {
			return err
		}
		sha.Write(p)
		_, err := s.Write(p)
		return err
	})
	if err != nil {
		return nil, archiveError(err)
	}
	narHash := nix.SumHash(nix.SHA256, sha)
	info, err := name(narHash, archive.Size())
	if err != nil {
		return nil, err
	}
	info = info.Clone()
	info.NarHash, info.NarSize = narHash, archive.Size()
	return info, s.succeed(narHash)
}

// cover grows the share in steps until it holds size bytes.
func (s *share) cover(ctx context.Context, size uint64) error {
	for uint64(s.n) < uint64(cost(size)) {
		if err := s.grow(ctx, growth); err != nil {
			return err
		}
	}
	return nil
}

// TempFile is a file for bytes that must be looked at before they can be stored,
// such as a flat file that is to be wrapped in a NAR. It takes space of the
// cache like an upload and is gone when it is closed.
type TempFile struct {
	*os.File
	ctx   context.Context // bounds waiting for space, as Write takes none
	c     *Cache
	name  string
	share share
	size  uint64
}

// TempFile makes a temporary file. Writes wait for space as long as ctx lives.
func (c *Cache) TempFile(ctx context.Context) (*TempFile, error) {
	f, name, err := c.scratch.create()
	if err != nil {
		return nil, err
	}
	return &TempFile{File: f, ctx: ctx, c: c, name: name, share: share{r: c.room, use: forUpload}}, nil
}

// Write appends to the file.
func (t *TempFile) Write(p []byte) (int, error) {
	if err := t.share.cover(t.ctx, t.size+uint64(len(p))); err != nil {
		return 0, err
	}
	n, err := t.File.Write(p)
	t.size += uint64(n)
	return n, diskError(err)
}

// ReadFrom is Write for a whole stream, in pieces.
func (t *TempFile) ReadFrom(r io.Reader) (int64, error) {
	before := t.size
	err := copyChunks(t.ctx, r, func(p []byte) error {
		_, err := t.Write(p)
		return err
	})
	return int64(t.size - before), err
}

// Close removes the file.
func (t *TempFile) Close() error {
	err := errors.Join(t.File.Close(), removeIfThere(t.c.scratch.root, t.name))
	t.share.end()
	return err
}
