package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// An answer about the store is a sequence of frames, as it has several streams and
// may end in an error when much of it was sent: a byte that says what it is, its
// length as u32, and that many bytes. The last one is frameEnd or frameError.

type frameKind byte

const (
	frameOut      frameKind = 'o' // of the answer
	frameProgress frameKind = 'p' // a line
	frameFile     frameKind = 'f' // of the tar stream of export
	frameError    frameKind = 'e' // why it failed
	frameEnd      frameKind = 'z'
)

// maxFrame bounds a frame, in bytes.
const maxFrame = 64 << 10

// frameWriter writes frames. It is used by one goroutine.
type frameWriter struct {
	out   *bufio.Writer
	flush func() error // of what is below out
}

func newFrameWriter(out io.Writer, flush func() error) *frameWriter {
	return &frameWriter{bufio.NewWriterSize(out, maxFrame), flush}
}

func (w *frameWriter) write(kind frameKind, p []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(p)))
	if _, err := w.out.Write(head); err != nil {
		return err
	}
	_, err := w.out.Write(p)
	return err
}

// say writes a frame that is to be seen at once.
func (w *frameWriter) say(kind frameKind, text string) error {
	err := w.write(kind, []byte(text[:min(len(text), maxFrame)]))
	return errors.Join(err, w.out.Flush(), w.flush())
}

// stream is a writer whose bytes become frames of one kind.
type frameStream struct {
	w    *frameWriter
	kind frameKind
}

func (s frameStream) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), maxFrame)]
		err = s.w.write(s.kind, part)
		n, p = n+len(part), p[len(part):]
	}
	return n, err
}

// errCutShort says that the proxy ended in the middle of an answer.
var errCutShort = errors.New("the proxy stopped in the middle of its answer")

// readFrames calls take with each frame until the answer is complete, and returns
// the error that it ends in.
func readFrames(in io.Reader, take func(frameKind, []byte) error) error {
	r := bufio.NewReaderSize(in, maxFrame)
	buf := make([]byte, maxFrame)
	for {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return fmt.Errorf("%w (%w)", errCutShort, err)
		}
		n := binary.BigEndian.Uint32(head[1:])
		if n > maxFrame {
			return fmt.Errorf("a frame of %d bytes, more than %d", n, maxFrame)
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return fmt.Errorf("%w (%w)", errCutShort, err)
		}
		switch kind := frameKind(head[0]); kind {
		case frameEnd:
			return nil
		case frameError:
			return errors.New(string(buf[:n]))
		default:
			if err := take(kind, buf[:n]); err != nil {
				return err
			}
		}
	}
}
