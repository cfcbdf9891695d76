package wire

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"nixbastion/internal/nix/nar"
)

// narBuffers holds what NARs are copied through, so that a session between two
// of them holds none.
var narBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// CopyNar writes a NAR to w as it is.
func CopyNar(w *Writer, src io.Reader) (int64, error) {
	buf := narBuffers.Get().(*[64 << 10]byte)
	defer narBuffers.Put(buf)
	// The wrappers keep the size of the pieces: neither side's shortcut is asked.
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{src}, buf[:])
}

// SendNar writes a NAR to w as it is and closes it.
func SendNar(w *Writer, src io.ReadCloser) error {
	_, err := CopyNar(w, src)
	return errors.Join(err, src.Close())
}

// ReadNar returns a reader of the NAR that comes next in the session and is all
// that is left of the operation. The end of the NAR is found by its grammar, so
// broken bytes end the session, as do more than limit bytes. Closing the reader
// before io.EOF ends it too, as does the end of the operation's context.
func (k *Call) ReadNar(limit uint64) io.ReadCloser {
	return &narReader{call: k, src: nar.NewReader(k.c.R), limit: limit}
}

// narReader reads a NAR off the session.
type narReader struct {
	call  *Call
	src   *nar.Reader
	limit uint64
	err   error // io.EOF once the session is free again
}

func (n *narReader) Read(p []byte) (int, error) {
	if n.err != nil {
		return 0, n.err
	}
	got, err := n.src.Read(p)
	if err == nil && n.src.Size() > n.limit {
		err = fmt.Errorf("NAR is larger than %d bytes", n.limit)
	}
	if err != nil {
		n.end(err)
		if got > 0 && n.err == io.EOF {
			return got, nil
		}
	}
	return got, n.err
}

func (n *narReader) end(err error) {
	if err == io.EOF {
		n.err = io.EOF
		err = nil
	}
	if err := n.call.End(err); err != nil {
		n.err = err
	}
}

// Close frees the session if the NAR was read to its end, and else breaks it.
func (n *narReader) Close() error {
	if n.err == nil && n.src.Done() {
		n.end(io.EOF)
	}
	if n.err == nil {
		n.err = n.call.Abandon(errors.New("NAR was closed before its end"))
	}
	return nil
}
