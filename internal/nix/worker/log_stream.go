package worker

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/wire"
)

const (
	// logDelay is how long a log message may wait for others to share a packet
	// with: too short to be seen, and long enough that a build which prints a
	// hundred thousand lines does not send as many packets.
	logDelay = 5 * time.Millisecond
	// logBatch is how many bytes of log are sent without waiting any longer.
	logBatch = 16 << 10
	// logBacklog is how many bytes of log are kept while they may not block.
	logBacklog = 64 << 10
)

// logStream is the nix.Logger of one operation that is being served. It gathers
// messages and sends them in batches, so that many cost few packets and none
// waits for another one to follow.
//
// Log blocks while the client does not read, with one exception. During an
// upload the client reads only in between, and would never again if the server
// stopped to take its data: then Log never blocks, and what does not fit the
// backlog is dropped and counted.
type logStream struct {
	// send is held while the connection is written to. It is taken before mu.
	send sync.Mutex
	conn *wire.Writer

	mu        sync.Mutex // guards the fields below
	enc       *conn      // writes to buf
	buf       *bytes.Buffer
	spare     *bytes.Buffer // swapped with buf while that is sent
	timer     *time.Timer   // fires flush; nil while nothing waits
	uploading bool
	dropped   int
	closed    bool
}

func newLogStream(c *conn) *logStream {
	l := &logStream{conn: c.w, buf: new(bytes.Buffer), spare: new(bytes.Buffer)}
	l.enc = &conn{dialect: c.dialect}
	return l
}

// Log sends a message soon. After the operation has ended it does nothing: a
// message between reply and request would break the session.
func (l *logStream) Log(m nix.LogMessage) {
	if l.add(m) {
		l.flush()
	}
}

// add queues a message and reports whether the queue must be sent at once.
func (l *logStream) add(m nix.LogMessage) (full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if l.uploading && l.buf.Len() >= logBacklog {
		l.dropped++
		return false
	}
	l.encode(m)
	if l.timer == nil {
		l.timer = time.AfterFunc(logDelay, l.flush)
	}
	return !l.uploading && l.buf.Len() >= logBatch
}

func (l *logStream) encode(m nix.LogMessage) {
	if l.enc.w == nil {
		l.enc.w = wire.NewWriter(writerFunc(func(p []byte) (int, error) { return l.buf.Write(p) }))
	}
	l.enc.writeLog(m)
	l.enc.w.Flush()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// flush sends what is queued.
func (l *logStream) flush() {
	l.send.Lock()
	defer l.send.Unlock()
	if l.moveLocked() {
		l.conn.Flush()
	}
}

// moveLocked writes what is queued to the connection and reports whether that
// was anything. If not, the connection is not touched: the operation may have
// ended meanwhile, and its reply be on the way. The caller holds send.
func (l *logStream) moveLocked() bool {
	l.mu.Lock()
	out := l.buf
	l.buf, l.spare = l.spare, nil
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	l.mu.Unlock()

	moved := out.Len() > 0
	if moved {
		l.conn.Write(out.Bytes())
		out.Reset()
	}
	l.mu.Lock()
	l.spare = out
	l.mu.Unlock()
	return moved
}

// setUploading says whether the client is sending an upload.
func (l *logStream) setUploading(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.uploading = on
}

// write lets something else go to the client between messages, and flushes.
func (l *logStream) write(f func(*wire.Writer)) error {
	l.send.Lock()
	defer l.send.Unlock()
	l.moveLocked()
	f(l.conn)
	return l.conn.Flush()
}

// close ends the log. What is queued goes to the connection's buffer, from where
// it leaves together with the reply. Nothing of the log writes to the connection
// afterwards.
func (l *logStream) close() {
	l.mu.Lock()
	if l.dropped > 0 && !l.closed {
		l.encode(nix.LogMessage{Kind: nix.LogText, Text: fmt.Sprintf("%d log messages were dropped during the upload\n", l.dropped)})
	}
	l.closed = true
	l.mu.Unlock()

	l.send.Lock()
	defer l.send.Unlock()
	l.moveLocked()
}
