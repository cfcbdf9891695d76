package nar

import (
	"errors"
	"fmt"
	"io"
)

// Reader hands on the bytes of one archive from a longer stream and checks them
// on the way.
type Reader struct {
	src io.Reader
	v   *Validator
	err error
}

// NewReader returns a reader of the archive that begins at src. It never reads
// more from src than belongs to the archive and keeps nothing back: whatever was
// taken from src has gone through Read. Contents of files are read straight into
// the caller's buffer; src should make small reads cheap, as a bufio.Reader does.
func NewReader(src io.Reader) *Reader { return NewVisitingReader(src, Visitor{}) }

// NewVisitingReader is NewReader with a visitor, which is called inside Read.
func NewVisitingReader(src io.Reader, visitor Visitor) *Reader {
	return &Reader{src: src, v: NewValidator(visitor)}
}

// gather is how many bytes Read collects before it returns: small files would
// otherwise come in pieces of a few bytes. It bounds what a slow source delays.
const gather = 16 << 10

// Read returns io.EOF exactly behind the archive, a [SyntaxError] at the first
// violation and an error that wraps io.ErrUnexpectedEOF if src ends before the
// archive. Bytes before a violation are handed out first.
func (r *Reader) Read(p []byte) (int, error) {
	n := 0
	for r.err == nil && n < min(len(p), gather) {
		n += r.readSome(p[n:])
	}
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	return 0, r.err
}

func (r *Reader) readSome(p []byte) int {
	rest := r.v.Rest()
	if rest == 0 {
		r.err = io.EOF
		return 0
	}
	p = p[:min(uint64(len(p)), rest)]
	got, readErr := readOnce(r.src, p)
	n, err := r.v.Write(p[:got])
	switch {
	case err != nil:
		r.err = err
	case readErr == nil || r.v.Done():
	case readErr == io.EOF:
		r.err = fmt.Errorf("bad archive: cut at byte %d: %w", r.v.Size(), io.ErrUnexpectedEOF)
	default:
		r.err = readErr
	}
	return n
}

// readOnce is one Read that makes progress or fails.
func readOnce(src io.Reader, p []byte) (int, error) {
	for range 100 {
		n, err := src.Read(p)
		if n < 0 || n > len(p) {
			return 0, errors.New("reader returned an impossible count")
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// Size returns the number of bytes handed on: behind the end, the NAR's size.
func (r *Reader) Size() uint64 { return r.v.Size() }

// Done reports whether the archive was handed on to its last byte, so that the
// next Read returns io.EOF and asks the source for nothing.
func (r *Reader) Done() bool { return r.v.Done() }
