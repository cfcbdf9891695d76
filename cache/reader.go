package cache

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"nixbastion/internal/nix"
)

// A published NAR was hashed before it reached the disk. What the disk gives back
// is hashed when it is first read to its end, and again after recheckAfter.

// openWhole opens a published NAR for one who reads it once from its beginning. It
// is hashed meanwhile if that is due, or if it must be.
func (c *Cache) openWhole(rec *record, must bool) (io.ReadCloser, error) {
	f, err := c.root.Open(narName(rec.info.NarHash))
	if err != nil {
		return nil, err
	}
	info, err := checkLength(f, rec.info.NarSize)
	if err != nil {
		f.Close()
		return nil, err
	}
	c.reading.Add(1)
	plain := &countedFile{File: f, reading: &c.reading}
	if id := idOf(info); must || !c.checked.has(rec.info.NarHash, id) {
		return &checkingReader{c: c, rec: rec, f: plain, id: id, sha: nix.SHA256.New()}, nil
	}
	return plain, nil
}

// countedFile is an open NAR that counts as being read until it is closed.
type countedFile struct {
	*os.File
	reading *atomic.Int64
	closed  atomic.Bool
}

func (f *countedFile) Close() error {
	if !f.closed.Swap(true) {
		f.reading.Add(-1)
	}
	return f.File.Close()
}

// checkingReader hashes a NAR while it is read. Its last bytes come only once the
// hash was found right: a NAR without them is never complete, so nobody sees a
// wrong one end cleanly.
type checkingReader struct {
	c      *Cache
	rec    *record
	f      *countedFile
	id     fileID
	sha    hash.Hash
	offset uint64
	last   []byte // what is left of the last bytes, once they were checked
	done   bool
	err    error // why there will be no more
}

// Read returns io.EOF only behind the last byte of a NAR whose hash is right.
func (r *checkingReader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	if left := r.before() - r.offset; left > 0 {
		n, err := r.f.Read(p[:min(uint64(len(p)), left)])
		r.sha.Write(p[:n])
		r.offset += uint64(n)
		if err != nil {
			r.err = r.failed(err)
		}
		return n, r.err
	}
	if !r.done {
		if r.err = r.end(); r.err != nil {
			return 0, r.err
		}
		r.done = true
	}
	n := copy(p, r.last)
	if r.last = r.last[n:]; n == 0 {
		r.err = io.EOF
	}
	return n, r.err
}

// before is how many bytes are given out unchecked.
func (r *checkingReader) before() uint64 {
	return r.rec.info.NarSize - min(heldBack, r.rec.info.NarSize)
}

// end reads the last bytes and checks the whole.
func (r *checkingReader) end() error {
	last := make([]byte, r.rec.info.NarSize-r.offset)
	if _, err := io.ReadFull(r.f, last); err != nil {
		return r.failed(err)
	}
	r.sha.Write(last)
	if nix.SumHash(nix.SHA256, r.sha) != r.rec.info.NarHash {
		return r.failed(errBytes)
	}
	r.c.checked.add(r.rec.info.NarHash, r.id)
	r.last = last
	return nil
}

var errBytes = errors.New("NAR has other bytes than its hash says")

// failed is what the reader is told. A NAR that is wrong is gone before it is.
func (r *checkingReader) failed(err error) error {
	p := r.rec.info.Path
	if !isRot(err) {
		return fmt.Errorf("read NAR of %s: %w", p, err)
	}
	if _, dropErr := r.c.condemn(r.rec.info.NarHash, r.id, err); dropErr != nil {
		r.c.log.Error("cannot drop a damaged path", "path", p, "err", dropErr)
	}
	return &nix.UserError{
		Message: fmt.Sprintf("path '%s' was damaged on the proxy's disk; it is dropped there and has to be brought anew", p),
		Err:     err,
	}
}

// isRot tells a NAR that is wrong from one that merely cannot be read now.
func isRot(err error) bool {
	return errors.Is(err, errBytes) || errors.Is(err, errLength) || errors.Is(err, syscall.EIO) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (r *checkingReader) Close() error { return r.f.Close() }
