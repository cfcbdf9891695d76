package cache

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// chunk is how many bytes are moved at once.
const chunk = 256 << 10

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// source is where a NAR comes from. It ends at the declared size and remembers
// an error of its own, which tells a broken connection from bad bytes.
type source struct {
	r    io.Reader
	left uint64
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.r.Read(p[:min(uint64(len(p)), s.left)])
	s.left -= uint64(n)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// digest hashes a NAR and, where there is one, verifies its content address.
type digest struct {
	sha hash.Hash       // nil with ca, which hashes the NAR too
	ca  *nix.CAVerifier // nil if the path claims no content address
}

func newDigest(info *nix.PathInfo) (*digest, error) {
	if info.CA.IsZero() {
		return &digest{sha: nix.SHA256.New()}, nil
	}
	ca, err := nix.NewCAVerifier(info)
	if err != nil {
		return nil, refusal(err)
	}
	return &digest{ca: ca}, nil
}

func (d *digest) Write(p []byte) (int, error) {
	if d.ca != nil {
		return d.ca.Write(p)
	}
	return d.sha.Write(p)
}

// verify ends the NAR and compares it with what was declared of it.
func (d *digest) verify(info *nix.PathInfo) error {
	var got nix.Hash
	var caErr error
	if d.ca != nil {
		got, caErr = d.ca.Verify()
	} else {
		got = nix.SumHash(nix.SHA256, d.sha)
	}
	if got != info.NarHash {
		return mismatch("hash", info.Path, info.NarHash, got)
	}
	if caErr != nil {
		return refusal(caErr)
	}
	return nil
}

// mismatch is worded as in Nix.
func mismatch(what string, p nix.StorePath, specified, got any) error {
	return nix.Refuse("%s mismatch importing path '%s';\n  specified: %v\n  got:       %v", what, p, specified, got)
}

// refusal makes an error about a peer's bytes one that the peer may read.
func refusal(err error) error {
	if _, ok := errors.AsType[*nix.UserError](err); ok {
		return err
	}
	return &nix.UserError{Message: err.Error(), Err: err}
}

// take streams the declared NAR into the spool and verifies it. It reads nothing
// behind the NAR.
func (s *spool) take(ctx context.Context, info *nix.PathInfo, r io.Reader) error {
	d, err := newDigest(info)
	if err != nil {
		return err
	}
	if err := s.share.grow(ctx, cost(info.NarSize)); err != nil {
		return fmt.Errorf("path '%s': %w", info.Path, err)
	}
	src := &source{r: r, left: info.NarSize}
	archive := nar.NewReader(src)
	err = copyChunks(ctx, archive, func(p []byte) error {
		if _, err := d.Write(p); err != nil {
			return refusal(err)
		}
		_, err := s.Write(p)
		return err
	})
	if err != nil {
		return readError(err, src, info, archive.Size())
	}
	if archive.Size() != info.NarSize {
		return mismatch("size", info.Path, info.NarSize, archive.Size())
	}
	if err := d.verify(info); err != nil {
		return err
	}
	return s.succeed(info.NarHash)
}

// readError says what went wrong with a NAR in the words that fit: those of the
// connection, of the declared size, or of the grammar.
func readError(err error, src *source, info *nix.PathInfo, got uint64) error {
	switch {
	case src.err != nil:
		return fmt.Errorf("read NAR of %s: %w", info.Path, src.err)
	case got == info.NarSize && errors.Is(err, io.ErrUnexpectedEOF):
		return mismatch("size", info.Path, info.NarSize, "more")
	}
	return archiveError(err)
}

// archiveError makes a UserError of what is wrong with an archive and leaves
// other errors alone.
func archiveError(err error) error {
	_, syntax := errors.AsType[*nar.SyntaxError](err)
	if syntax || errors.Is(err, io.ErrUnexpectedEOF) {
		return refusal(err)
	}
	return err
}

// copyChunks hands on what it reads until the end.
func copyChunks(ctx context.Context, r io.Reader, write func([]byte) error) error {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	for ctx.Err() == nil {
		n, err := r.Read(buf[:])
		if n > 0 {
			if err := write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}
