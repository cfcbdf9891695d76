package wire

import (
	"encoding/binary"
	"io"
	"maps"
	"slices"

	"nixbastion/internal/nix"
)

// Writer writes values to a stream through a small buffer. After the first
// error everything is dropped and Err returns it. Nothing reaches the peer for
// certain before Flush: a codec flushes where the peer is to speak next. It is
// not safe for concurrent use.
type Writer struct {
	dst io.Writer
	buf []byte
	err error
}

// NewWriter returns a Writer to dst.
func NewWriter(dst io.Writer) *Writer {
	return &Writer{dst: dst, buf: make([]byte, 0, bufferSize)}
}

// Err returns the first error of the stream.
func (w *Writer) Err() error { return w.err }

// Flush writes out what is buffered.
func (w *Writer) Flush() error {
	if w.err == nil && len(w.buf) > 0 {
		_, w.err = w.dst.Write(w.buf)
	}
	w.buf = w.buf[:0]
	return w.err
}

// Write writes raw bytes, past the buffer where there are many.
func (w *Writer) Write(p []byte) (int, error) {
	if len(p) > cap(w.buf)-len(w.buf) {
		w.Flush()
	}
	if w.err != nil {
		return 0, w.err
	}
	if len(p) > cap(w.buf) {
		n, err := w.dst.Write(p)
		w.err = err
		return n, err
	}
	w.buf = append(w.buf, p...)
	return len(p), nil
}

// Uint64 writes an integer.
func (w *Writer) Uint64(n uint64) {
	if cap(w.buf)-len(w.buf) < 8 {
		w.Flush()
	}
	w.buf = binary.LittleEndian.AppendUint64(w.buf, n)
}

// Int64 writes a signed number.
func (w *Writer) Int64(n int64) { w.Uint64(uint64(n)) }

// Bool writes 1 or 0.
func (w *Writer) Bool(b bool) {
	if b {
		w.Uint64(1)
	} else {
		w.Uint64(0)
	}
}

// zeros is what padding is made of.
const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00"

// String writes a string with its length and padding.
func (w *Writer) String(s string) {
	w.Uint64(uint64(len(s)))
	w.raw(s)
	w.raw(zeros[:-len(s)&7])
}

func (w *Writer) raw(s string) {
	for len(s) > 0 {
		if len(w.buf) == cap(w.buf) {
			w.Flush()
		}
		n := min(len(s), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, s[:n]...)
		s = s[n:]
	}
}

// StorePath writes a path; the zero path is the empty string, which stands for
// none where a path is optional.
func (w *Writer) StorePath(p nix.StorePath) { w.String(p.String()) }

// StorePaths writes a set of paths as Nix does: sorted and without duplicates,
// whatever order they are given in.
func (w *Writer) StorePaths(paths []nix.StorePath) {
	if !slices.IsSortedFunc(paths, comparePathsStrictly) {
		paths = nix.SortPaths(slices.Clone(paths))
	}
	w.Uint64(uint64(len(paths)))
	for _, p := range paths {
		w.StorePath(p)
	}
}

// comparePathsStrictly counts equal neighbours as unsorted.
func comparePathsStrictly(a, b nix.StorePath) int {
	if a == b {
		return -1
	}
	return a.Compare(b)
}

// Strings writes a list in the given order.
func (w *Writer) Strings(list []string) {
	w.Uint64(uint64(len(list)))
	for _, s := range list {
		w.String(s)
	}
}

// StringSet writes a set: sorted and without duplicates.
func (w *Writer) StringSet(set []string) {
	set = slices.Clone(set)
	slices.Sort(set)
	w.Strings(slices.Compact(set))
}

// StringMap writes a map in the order of its keys.
func (w *Writer) StringMap(m map[string]string) {
	w.Uint64(uint64(len(m)))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		w.String(key)
		w.String(m[key])
	}
}
