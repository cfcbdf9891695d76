package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
)

// tail is what stands at the end of a file.
type tail struct {
	size int64
	last link // of the last whole line
	// ok says that there is a last whole line and nothing wrong behind it, but for
	// torn bytes of a line that was begun; or for its newline.
	ok     bool
	torn   int64
	sum    Hash // of those
	noLine bool // there is no newline at all
	noEnd  bool // the last whole line has no newline
}

// readTail looks at the end of a file. It reads at most twice a line's worth into
// memory.
func readTail(f io.ReaderAt, size int64) (t tail, err error) {
	t.size = size
	end, err := lastNewline(f, size)
	if err != nil {
		return t, err
	}
	t.noLine = end == 0
	if t.torn = size - end; t.torn > 0 {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, end, t.torn)); err != nil {
			return t, err
		}
		h.Sum(t.sum[:0])
		if t.complete(f, end) {
			return t, nil
		}
	}
	from := max(0, end-maxLine-1)
	text := make([]byte, end-from)
	if _, err := f.ReadAt(text, from); err != nil && !errors.Is(err, io.EOF) {
		return t, err
	}
	text = bytes.TrimSuffix(text, []byte("\n"))
	t.last, t.ok = readLine(text[bytes.LastIndexByte(text, '\n')+1:])
	return t, nil
}

// complete takes bytes behind the last newline for a line that lacks nothing but its
// newline, if that is what they are.
func (t *tail) complete(f io.ReaderAt, end int64) bool {
	if t.torn > maxLine {
		return false
	}
	text := make([]byte, t.torn)
	if _, err := f.ReadAt(text, end); err != nil && !errors.Is(err, io.EOF) {
		return false
	}
	if t.last, t.ok = readLine(text); t.ok {
		t.torn, t.noEnd = 0, true
	}
	return t.ok
}

// lastNewline is the offset behind the last newline, 0 if there is none.
func lastNewline(f io.ReaderAt, size int64) (int64, error) {
	block := make([]byte, 64<<10)
	for end := size; end > 0; {
		from := max(0, end-int64(len(block)))
		part := block[:end-from]
		if _, err := f.ReadAt(part, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		end = from
	}
	return 0, nil
}

// headOf is the last whole line of a file, if that is at its end.
func headOf(name string) (link, bool) {
	f, err := os.Open(name)
	if err != nil {
		return link{}, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return link{}, false
	}
	t, err := readTail(f, info.Size())
	return t.last, err == nil && t.ok
}
