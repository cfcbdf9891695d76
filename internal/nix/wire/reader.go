package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"nixbastion/internal/nix"
)

const (
	// bufferSize is small because thousands of idle sessions hold one; bulk
	// data is read past it, straight into the caller's memory.
	bufferSize = 4 << 10
	// wideSize is that of the buffer while many long frames come. Each read of an
	// SSH channel is answered with a packet that opens its window again, and that
	// costs more than to decrypt what one frame holds.
	wideSize = 256 << 10
	// firstPiece is how much is allocated for a long string before its bytes
	// have arrived. It doubles with what really comes.
	firstPiece = 64 << 10
	// firstElements is how many elements of a collection are allocated for
	// before they have arrived.
	firstElements = 64
	// elementCost is what a string takes in memory beside its bytes. It counts
	// against the budget so that a million empty strings are not free.
	elementCost = 32
	// maxStorePath is more than the longest store path has (255 bytes), so that
	// one which is only a little too long gets the message of the parser.
	maxStorePath = 1024
)

// FormatError says that the peer's bytes are not what the protocol asks for.
// Its text speaks of nothing else, so the peer may read it.
type FormatError struct {
	// Offset is where in the stream it was noticed, in bytes from its start.
	Offset int64
	Err    error
}

func (e *FormatError) Error() string { return fmt.Sprintf("%v (at byte %d)", e.Err, e.Offset) }

func (e *FormatError) Unwrap() error { return e.Err }

// Reader reads values from a stream. After the first error every method returns
// a zero value and Err the error: a [FormatError], io.ErrUnexpectedEOF where the
// stream ends, or the error of the stream. It is not safe for concurrent use,
// with the exception that [Reader.Watch] describes.
type Reader struct {
	src      io.Reader
	buf      []byte
	small    []byte // what buf is to be again; nil unless it was widened
	narrowed bool   // the wide buffer is not needed any more
	r, w     int    // buf[r:w] was read from src and not yet consumed
	passed   int64  // bytes of src that lie before buf[0]
	budget   int64  // memory left for strings; see Budget
	srcErr   error  // of src; counts once the buffer is empty
	err      error
	peek     *peek // a read that Watch started and nobody has joined yet
}

// NewReader returns a Reader without a budget; see [Reader.Budget].
func NewReader(src io.Reader) *Reader {
	return &Reader{src: src, buf: make([]byte, bufferSize), budget: math.MaxInt64}
}

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Fail makes err, which says what is wrong with the bytes just read, the
// reader's error unless it has one already.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = &FormatError{Offset: r.Offset(), Err: err}
	}
}

func (r *Reader) failf(format string, args ...any) { r.Fail(fmt.Errorf(format, args...)) }

// Offset returns how many bytes were consumed.
func (r *Reader) Offset() int64 { return r.passed + int64(r.r) }

// Budget sets how many bytes of memory the strings that are read from now on
// may take together. A codec sets it anew for every message.
func (r *Reader) Budget(n int64) { r.budget = n }

func (r *Reader) spend(n int64) bool {
	r.budget -= n
	if r.budget < 0 {
		r.failf("message is larger than this end accepts")
		return false
	}
	return true
}

// Buffered returns how many bytes lie in the buffer. It joins no peek.
func (r *Reader) Buffered() int { return r.w - r.r }

// More waits for the next byte and reports whether there is one. The stream may
// end here: then it returns false and Err stays nil.
func (r *Reader) More() bool {
	if r.err != nil {
		return false
	}
	r.join()
	if r.r < r.w || r.fill() {
		return true
	}
	if r.srcErr != io.EOF {
		r.err = r.srcErr
	}
	return false
}

// fill reads once more into the buffer. It returns false at the end of src.
func (r *Reader) fill() bool {
	if r.srcErr != nil {
		return false
	}
	r.settle()
	if r.r > 0 {
		r.passed += int64(r.r)
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	n, err := readSome(r.src, r.buf[r.w:])
	r.w += n
	r.srcErr = err
	return n > 0
}

// wideBuffers are lent to Readers of which much is read in small pieces.
var wideBuffers = sync.Pool{New: func() any { return new([wideSize]byte) }}

// widen reads more at once from now on, until narrow.
func (r *Reader) widen() {
	r.narrowed = false
	if r.small == nil {
		r.small = r.buf
		r.move(wideBuffers.Get().(*[wideSize]byte)[:])
	}
}

// narrow ends widen. The small buffer comes back with the first read that finds
// room for what is left in the wide one.
func (r *Reader) narrow() { r.narrowed = true }

// settle is called before each read of src.
func (r *Reader) settle() {
	if r.small == nil || !r.narrowed || r.w-r.r > len(r.small) {
		return
	}
	wide := r.buf
	r.move(r.small)
	r.small = nil
	wideBuffers.Put((*[wideSize]byte)(wide))
}

// move takes another buffer, which has room for what is in this one.
func (r *Reader) move(buf []byte) {
	r.passed += int64(r.r)
	r.w = copy(buf, r.buf[r.r:r.w])
	r.r = 0
	r.buf = buf
}

// readSome is src.Read that returns at least a byte or an error.
func readSome(src io.Reader, p []byte) (int, error) {
	for range 100 {
		if n, err := src.Read(p); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// take consumes n bytes, at most the size of the buffer. They are valid until
// the next call; nil after an error.
func (r *Reader) take(n int) []byte {
	if !r.need(n) {
		return nil
	}
	b := r.buf[r.r : r.r+n]
	r.r += n
	return b
}

func (r *Reader) need(n int) bool {
	if r.err != nil {
		return false
	}
	r.join()
	for r.w-r.r < n {
		if !r.fill() {
			r.err = unexpected(r.srcErr)
			return false
		}
	}
	return true
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Read reads raw bytes, past the buffer where p is large. The end of the stream
// is io.ErrUnexpectedEOF, since raw bytes are always part of a message.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	r.join()
	if r.r == r.w {
		r.settle()
		if r.srcErr == nil && len(p) >= len(r.buf) {
			return r.readPast(p)
		}
		if !r.fill() {
			r.err = unexpected(r.srcErr)
			return 0, r.err
		}
	}
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	return n, nil
}

func (r *Reader) readPast(p []byte) (int, error) {
	n, err := readSome(r.src, p)
	r.passed += int64(n)
	r.srcErr = err
	if n == 0 {
		r.err = unexpected(err)
	}
	return n, r.err
}

// Discard skips n bytes.
func (r *Reader) Discard(n uint64) {
	for n > math.MaxInt64 {
		r.Discard(math.MaxInt64)
		n -= math.MaxInt64
	}
	if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil && r.err == nil {
		r.err = unexpected(err)
	}
}

// Uint64 reads an integer.
func (r *Reader) Uint64() uint64 {
	b := r.take(8)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

// PeekUint64 returns the next integer without consuming it.
func (r *Reader) PeekUint64() uint64 {
	if !r.need(8) {
		return 0
	}
	return binary.LittleEndian.Uint64(r.buf[r.r:])
}

// Rest returns what comes up to the end of the stream, but at most limit bytes
// or what fits the buffer, also after an error: for showing what a peer sent
// that does not speak the protocol.
func (r *Reader) Rest(limit int) []byte {
	r.join()
	for r.w-r.r < min(limit, len(r.buf)) && r.fill() {
	}
	return slices.Clone(r.buf[r.r:min(r.w, r.r+limit)])
}

func (r *Reader) atMost(limit uint64, what string) uint64 {
	n := r.Uint64()
	if n > limit {
		r.failf("expected %s of at most %d, got %d", what, limit, n)
		return 0
	}
	return n
}

// Uint32 reads an integer that Nix holds in 32 bits.
func (r *Reader) Uint32() uint32 { return uint32(r.atMost(math.MaxUint32, "a number")) }

// Uint8 reads an integer that Nix holds in 8 bits: a mode, a status, a tag.
func (r *Reader) Uint8() uint8 { return uint8(r.atMost(math.MaxUint8, "a number")) }

// Int64 reads a time or another signed number, and as Nix does refuses those
// that are negative.
func (r *Reader) Int64() int64 { return int64(r.atMost(math.MaxInt64, "a number")) }

// Bool reads a truth value: everything but 0 is true.
func (r *Reader) Bool() bool { return r.Uint64() != 0 }

// Expect reads an integer that must be want; what names it in the error.
func (r *Reader) Expect(what string, want uint64) {
	if n := r.Uint64(); n != want && r.err == nil {
		r.failf("expected %s %#x, got %#x", what, want, n)
	}
}

// Optional reads the tag before an optional value and reports whether the value
// follows.
func (r *Reader) Optional() bool { return r.atMost(1, "a tag") == 1 }

// String reads a string of at most limit bytes.
func (r *Reader) String(limit int) string {
	n := int(r.atMost(uint64(limit), "a string with a length"))
	if r.err != nil || !r.spend(int64(n)+elementCost) {
		return ""
	}
	s := r.text(n)
	r.padding(uint64(n))
	if r.err != nil {
		return ""
	}
	return s
}

// Text reads a string meant for people: of one that is longer than keep bytes
// the rest is skipped. More than limit bytes are an error.
func (r *Reader) Text(keep, limit int) string {
	n := int(r.atMost(uint64(limit), "a text with a length"))
	kept := min(n, keep)
	if r.err != nil || !r.spend(int64(kept)+elementCost) {
		return ""
	}
	s := r.text(kept)
	r.Discard(uint64(n - kept))
	r.padding(uint64(n))
	if kept < n {
		s += fmt.Sprintf("... [%d bytes cut]", n-kept)
	}
	return s
}

func (r *Reader) text(n int) string {
	if n <= len(r.buf) {
		return string(r.take(n))
	}
	return string(r.long(n))
}

// long reads n bytes into memory that grows as they arrive.
func (r *Reader) long(n int) []byte {
	b := make([]byte, 0, min(n, firstPiece))
	for len(b) < n && r.err == nil {
		if len(b) == cap(b) {
			b = slices.Grow(b, min(n-len(b), len(b)))
		}
		m, _ := r.Read(b[len(b):min(n, cap(b))])
		b = b[:len(b)+m]
	}
	return b
}

// padding checks the zero bytes that bring n up to a multiple of 8.
func (r *Reader) padding(n uint64) {
	for _, c := range r.take(int(-n & 7)) {
		if c != 0 {
			r.failf("expected zero padding, got %#x", c)
			return
		}
	}
}

// StringBody opens a string for streaming: the body has exactly the bytes of
// the string and must be read to io.EOF, which checks the padding, before
// anything else is read. The string has at least 1 and at most limit bytes.
func (r *Reader) StringBody(limit uint64) io.Reader {
	n := r.atMost(limit, "a string with a length")
	if n == 0 && r.err == nil {
		r.failf("expected a string, got an empty one")
	}
	return &stringBody{r: r, size: n, left: n}
}

type stringBody struct {
	r          *Reader
	size, left uint64
	padded     bool
}

func (b *stringBody) Read(p []byte) (int, error) {
	if b.r.err != nil {
		return 0, b.r.err
	}
	if b.left == 0 {
		return 0, b.end()
	}
	n, err := b.r.Read(p[:min(uint64(len(p)), b.left)])
	b.left -= uint64(n)
	return n, err
}

func (b *stringBody) end() error {
	if !b.padded {
		b.r.padding(b.size)
		b.padded = true
	}
	if b.r.err != nil {
		return b.r.err
	}
	return io.EOF
}

// StorePath reads a store path.
func (r *Reader) StorePath() nix.StorePath {
	s := r.String(maxStorePath)
	if r.err != nil {
		return nix.StorePath{}
	}
	return r.parsePath(s)
}

func (r *Reader) parsePath(s string) nix.StorePath {
	path, err := nix.ParseStorePath(s)
	if err != nil {
		r.Fail(err)
	}
	return path
}

// OptionalStorePath reads a store path or the empty string, which is the zero path.
func (r *Reader) OptionalStorePath() nix.StorePath {
	s := r.String(maxStorePath)
	if r.err != nil || s == "" {
		return nix.StorePath{}
	}
	return r.parsePath(s)
}

// Count reads the number of elements of a collection.
func (r *Reader) Count(limit int) int {
	return int(r.atMost(uint64(limit), "a collection with a count"))
}

// List reads a collection of at most limit elements with the given reader of one.
func List[T any](r *Reader, limit int, element func() T) []T {
	n := r.Count(limit)
	if n == 0 || r.err != nil {
		return nil
	}
	list := make([]T, 0, min(n, firstElements))
	for range n {
		v := element()
		if r.err != nil {
			return nil
		}
		list = append(list, v)
	}
	return list
}

// StorePaths reads a set of paths. The result is sorted and has no duplicates,
// however it came.
func (r *Reader) StorePaths(limit int) []nix.StorePath {
	return nix.SortPaths(List(r, limit, r.StorePath))
}

// Strings reads a list of at most limit strings of at most length bytes each.
func (r *Reader) Strings(limit, length int) []string {
	return List(r, limit, func() string { return r.String(length) })
}

// StringSet reads a set of strings. The result is sorted, without duplicates.
func (r *Reader) StringSet(limit, length int) []string {
	list := r.Strings(limit, length)
	slices.Sort(list)
	return slices.Compact(list)
}

// StringMap reads a map; of entries with the same key the last counts.
func (r *Reader) StringMap(limit, length int) map[string]string {
	n := r.Count(limit)
	m := make(map[string]string)
	for range n {
		key, value := r.String(length), r.String(length)
		if r.err != nil {
			return nil
		}
		m[key] = value
	}
	return m
}

// IsFormat reports whether err is about the peer's bytes and not about the
// stream that carried them.
func IsFormat(err error) bool {
	var f *FormatError
	return errors.As(err, &f)
}
