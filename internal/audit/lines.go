package audit

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
)

// lineReader reads the lines of a file. It keeps no more of one than any of ours
// has.
type lineReader struct {
	file *os.File
	r    *bufio.Reader
	n    int // of the line read last
	text []byte
	sum  hash.Hash
	size int64 // of the line read last, without its newline
	// whole says that it ends in a newline.
	whole bool
}

func openLines(name string) (*lineReader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	return &lineReader{file: f, r: bufio.NewReaderSize(f, 64<<10), sum: sha256.New()}, nil
}

// next reads a line. It returns io.EOF behind the last.
func (l *lineReader) next() error {
	l.text, l.size, l.whole = l.text[:0], 0, false
	l.sum.Reset()
	for {
		part, err := l.r.ReadSlice('\n')
		if n := len(part); n > 0 && part[n-1] == '\n' {
			l.whole, part = true, part[:n-1]
		}
		l.size += int64(len(part))
		l.sum.Write(part)
		if len(l.text)+len(part) <= maxLine {
			l.text = append(l.text, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case err != nil && err != io.EOF:
			return err
		case l.whole || l.size > 0:
			l.n++
			return nil
		default:
			return io.EOF
		}
	}
}

// link is where the line stands in the chain.
func (l *lineReader) link() (link, bool) {
	if int64(len(l.text)) != l.size {
		return link{}, false
	}
	return readLine(l.text)
}

func (l *lineReader) hash() (h Hash) {
	l.sum.Sum(h[:0])
	return h
}

func (l *lineReader) close() { l.file.Close() }
