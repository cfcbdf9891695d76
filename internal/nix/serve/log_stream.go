package serve

import (
	"context"
	"fmt"
	"io"
	"sync"

	"nixbastion/internal/nix"
)

// logBacklog is how many bytes of log wait for the client to read, and as many
// are on their way to it.
const logBacklog = 512 << 10

// logStream is the nix.Logger of one command that is being served. It makes text
// of messages, one line for each line that a build prints, and hands it on in a
// goroutine, so that many lines share a packet.
//
// Log blocks while the backlog is full, until the client reads or has left, with
// one exception. During an upload nobody would notice that it left: then Log
// never blocks, and what does not fit the backlog is dropped and counted.
type logStream struct {
	ctx context.Context
	dst io.Writer

	mu        sync.Mutex // guards the fields below
	buf       []byte
	spare     []byte // swapped with buf while that is written
	writing   bool   // a goroutine runs write
	uploading bool
	dropped   int
	closed    bool
	changed   chan struct{} // closed and renewed when there is room, or nothing left to write
}

func newLogStream(ctx context.Context, dst io.Writer) *logStream {
	return &logStream{ctx: ctx, dst: dst, changed: make(chan struct{})}
}

// textOf returns what of a message belongs on a standard error: the lines of
// builds and what is for the user's terminal. Everything else tells what happens
// to programs, and this text becomes the log of the build.
func textOf(m nix.LogMessage) string {
	switch {
	case m.Kind == nix.LogText:
		return m.Text
	case m.Kind != nix.LogResult || len(m.Fields) == 0:
		return ""
	case m.Type == nix.ResultBuildLogLine || m.Type == nix.ResultPostBuildLogLine:
		return m.Fields[0].Text + "\n"
	}
	return ""
}

// Log sends a message soon. After the command has ended it does nothing: its
// text would be taken for the next one's.
func (l *logStream) Log(m nix.LogMessage) {
	text := textOf(m)
	if text == "" {
		return
	}
	for {
		room := l.add(text)
		if room == nil {
			return
		}
		select {
		case <-room:
		case <-l.ctx.Done():
			return
		}
	}
}

// add queues a text, or returns what is closed when it may be tried again.
func (l *logStream) add(text string) (room <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil
	case len(l.buf) >= logBacklog && l.uploading:
		l.dropped++
		return nil
	case len(l.buf) >= logBacklog:
		return l.changed
	}
	l.addLocked(text)
	return nil
}

func (l *logStream) addLocked(text string) {
	l.buf = append(l.buf, text...)
	if !l.writing {
		l.writing = true
		go l.write()
	}
}

// write writes until nothing is left. It ends with the client, whose end makes
// the last Write fail.
func (l *logStream) write() {
	for {
		out := l.take()
		if out == nil {
			return
		}
		_, err := l.dst.Write(out)
		l.mu.Lock()
		l.spare = out[:0]
		if err != nil { // nobody reads any more
			l.closed, l.buf = true, nil
		}
		l.mu.Unlock()
	}
}

// take returns what is to be written next, nil if nothing is left.
func (l *logStream) take() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.wakeLocked()
	if len(l.buf) == 0 {
		l.writing = false
		return nil
	}
	out := l.buf
	l.buf, l.spare = l.spare, nil
	return out
}

func (l *logStream) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// setUploading says whether the client is sending an upload.
func (l *logStream) setUploading(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.uploading = on
}

// close ends the log and waits until all of it was written, or until ctx ends.
func (l *logStream) close(ctx context.Context) {
	l.mu.Lock()
	if l.dropped > 0 && !l.closed {
		l.addLocked(fmt.Sprintf("%d log messages were dropped during the upload\n", l.dropped))
	}
	l.closed = true
	l.mu.Unlock()
	for {
		l.mu.Lock()
		writing, changed := l.writing, l.changed
		l.mu.Unlock()
		if !writing {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
