// Package sshconn suits sockets to the way in which golang.org/x/crypto/ssh uses
// them.
package sshconn

import (
	"io"
	"sync"
	"time"
)

// A Writer gives a socket each SSH packet in one piece. The library writes one of
// more than 4096 bytes in two (its transport has a bufio.Writer of that size): a
// second system call, and a second run of the network stack, which together cost
// more than to encrypt the packet.
//
// It is safe for concurrent use. Stop it when the socket is closed.
type Writer struct {
	dst io.Writer

	mu   sync.Mutex
	held *[]byte     // the first 4096 bytes of a packet; nil while there are none
	late *time.Timer // sends them if nothing follows; nil before the first
	err  error       // of a late send
}

const (
	// libraryBuffer is what the library writes of a longer packet first.
	libraryBuffer = 4096
	// patience is how long that is held. The rest follows at once, except behind a
	// packet of just this length, which AES-GCM and ChaCha20-Poly1305 never make.
	patience = time.Millisecond
)

// pieces are lent to writers that hold something. The library's packets have at
// most 32 KiB of data here.
var pieces = sync.Pool{New: func() any { b := make([]byte, 0, 40<<10); return &b }}

// NewWriter returns a Writer to a socket.
func NewWriter(dst io.Writer) *Writer { return &Writer{dst: dst} }

// Write writes p, or holds it until the next Write. An error of a piece that was
// held too long is that of the next Write.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.err != nil:
		return 0, w.err
	case w.held != nil:
		return w.join(p)
	case len(p) == libraryBuffer:
		w.hold(p)
		return len(p), nil
	}
	return w.dst.Write(p)
}

// hold keeps p. The caller holds mu, as for all below.
func (w *Writer) hold(p []byte) {
	w.held = pieces.Get().(*[]byte)
	*w.held = append(*w.held, p...)
	if w.late == nil {
		w.late = time.AfterFunc(patience, w.sendLate)
	} else {
		w.late.Reset(patience)
	}
}

// join sends what is held, and p behind it.
func (w *Writer) join(p []byte) (int, error) {
	w.late.Stop()
	if len(*w.held)+len(p) > cap(*w.held) {
		if err := w.sendHeld(); err != nil {
			return 0, err
		}
		return w.dst.Write(p)
	}
	*w.held = append(*w.held, p...)
	before := len(*w.held) - len(p)
	n, err := w.dst.Write(*w.held)
	w.release()
	return max(0, n-before), err
}

func (w *Writer) sendHeld() error {
	_, err := w.dst.Write(*w.held)
	w.release()
	return err
}

func (w *Writer) release() {
	*w.held = (*w.held)[:0]
	pieces.Put(w.held)
	w.held = nil
}

// sendLate may come late itself and find the beginning of another packet, which
// is then sent in two pieces.
func (w *Writer) sendLate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held != nil && w.err == nil {
		w.err = w.sendHeld()
	}
}

// Stop drops what is held.
func (w *Writer) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held != nil {
		w.late.Stop()
		w.release()
	}
}
