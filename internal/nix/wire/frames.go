package wire

import (
	"encoding/binary"
	"io"
)

// FrameReader reads the payload of a framed stream: chunks of a length and that
// many bytes, ended by a length of 0. What a chunk's header says is never held
// in memory: bytes are handed on as they come.
type FrameReader struct {
	r    *Reader
	left uint64
	came int64 // bytes of payload
	done bool
}

// NewFrameReader starts to read a framed stream that begins here.
func NewFrameReader(r *Reader) *FrameReader { return &FrameReader{r: r} }

// Read returns io.EOF behind the terminator. It takes as many chunks as have
// arrived already.
func (f *FrameReader) Read(p []byte) (n int, err error) {
	for {
		if f.left == 0 && !f.next() {
			break
		}
		if len(p) == 0 {
			return 0, nil
		}
		got, err := f.r.Read(p[n:min(uint64(len(p)), uint64(n)+f.left)])
		n += got
		f.left -= uint64(got)
		f.came += int64(got)
		if err != nil || n == len(p) || f.r.Buffered() < frameHeader {
			return n, err
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, f.end()
}

// next reads the header of a chunk; false at the end.
func (f *FrameReader) next() bool {
	if f.done || f.r.err != nil {
		return false
	}
	f.left = uint64(f.r.Uint32())
	if f.came >= wideSize { // what is only announced costs no memory
		f.r.widen()
	}
	if f.left > 0 {
		return true
	}
	f.done = f.r.err == nil
	f.r.narrow()
	return false
}

func (f *FrameReader) end() error {
	if f.done {
		return io.EOF
	}
	return f.r.err
}

// Done reports whether the terminator was read.
func (f *FrameReader) Done() bool { return f.done }

// Drain skips to behind the terminator. It returns how many bytes it skipped,
// and the stream's error if it breaks before.
func (f *FrameReader) Drain() (int64, error) { return io.Copy(io.Discard, f) }

const (
	frameHeader = 8
	// frameSize is the length of a chunk with its header: two full packets of
	// an SSH channel.
	frameSize = 64 << 10
)

// FrameWriter writes a framed stream in chunks of 64 KiB. What it was given
// last may wait in it until Close.
type FrameWriter struct {
	w   *Writer
	buf []byte // room for the header, then payload; nil until there is some
}

// NewFrameWriter starts a framed stream in w.
func NewFrameWriter(w *Writer) *FrameWriter { return &FrameWriter{w: w} }

// room returns where payload can be put.
func (f *FrameWriter) room() []byte {
	if f.buf == nil {
		f.buf = make([]byte, frameHeader, frameSize)
	}
	return f.buf[len(f.buf):cap(f.buf)]
}

// took says that n bytes were put there.
func (f *FrameWriter) took(n int) {
	f.buf = f.buf[:len(f.buf)+n]
	if len(f.buf) == cap(f.buf) {
		f.flush()
	}
}

// flush hands the chunk to the Writer in one piece, header included.
func (f *FrameWriter) flush() {
	if len(f.buf) <= frameHeader {
		return
	}
	binary.LittleEndian.PutUint64(f.buf, uint64(len(f.buf)-frameHeader))
	f.w.Write(f.buf)
	f.buf = f.buf[:frameHeader]
}

// Write adds to the payload.
func (f *FrameWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := copy(f.room(), rest)
		rest = rest[n:]
		f.took(n)
	}
	return len(p), f.w.err
}

// ReadFrom adds all of src to the payload without another copy.
func (f *FrameWriter) ReadFrom(src io.Reader) (int64, error) {
	var total int64
	for f.w.err == nil {
		n, err := readSome(src, f.room())
		total += int64(n)
		f.took(n)
		if err == io.EOF {
			return total, f.w.err
		}
		if err != nil {
			return total, err
		}
	}
	return total, f.w.err
}

// Close writes what is left and the terminator, and flushes the Writer.
func (f *FrameWriter) Close() error {
	f.flush()
	return f.Abort()
}

// Abort drops what is left and writes the terminator, as a sender does that was
// told of an error.
func (f *FrameWriter) Abort() error {
	f.buf = nil
	f.w.Uint64(0)
	return f.w.Flush()
}
