package proxy

import (
	"context"
	"encoding/gob"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"nixbastion/internal/nix"
)

const (
	// logTailSize is how much of a build's log stays in memory before it goes
	// to a file, in bytes: most builds never need the file.
	logTailSize = 64 << 10
	// defaultLogLimit is how much of a build's log is kept for followers, in bytes.
	defaultLogLimit = 64 << 20
)

// errLogClosed ends a follower whose context ended.
var errLogClosed = errors.New("follower of a build log has left")

// buildLog is the log of one build: one writer, and any number of followers
// that each read from the first message on at their own speed. The writer never
// waits for a follower. Beyond the limit messages are dropped, with one line
// that says so.
//
// Activity ids in it are the build's own: those of an attempt are mapped on the
// way in by [attemptLog], those of a client on the way out by follow.
type buildLog struct {
	dir   string
	limit int64

	mu      sync.Mutex
	enc     *gob.Encoder // writes to the log itself through writeLocked
	file    *os.File     // nil until the tail was full once; already unlinked
	flushed int64        // bytes in file
	tail    []byte       // bytes after flushed
	full    bool
	closed  bool
	holders int           // besides the clients of the build; see hold
	freed   bool          // by its clients
	err     error         // of the file; ends the log
	changed chan struct{} // closed and renewed whenever something above changes

	waits atomic.Uint64 // activities of waiting, see waitID
}

// newBuildLog makes an empty log whose file, if it needs one, is made in dir.
// A limit of 0 means the default.
func newBuildLog(dir string, limit int64) *buildLog {
	if limit <= 0 {
		limit = defaultLogLimit
	}
	l := &buildLog{dir: dir, limit: limit, changed: make(chan struct{})}
	l.enc = gob.NewEncoder(writerFunc(l.writeLocked))
	return l
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Log appends a message. It makes a buildLog a nix.Logger.
func (l *buildLog) Log(m nix.LogMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.full || l.err != nil {
		return
	}
	if l.flushed+int64(len(l.tail)) > l.limit {
		l.full = true
		m = nix.LogMessage{Kind: nix.LogText, Text: "the log is longer than is kept here; the rest is not shown\n"}
	}
	if err := l.enc.Encode(&m); err != nil {
		l.err = err
	}
	l.wakeLocked()
}

func (l *buildLog) wakeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *buildLog) writeLocked(p []byte) (int, error) {
	l.tail = append(l.tail, p...)
	if len(l.tail) < logTailSize {
		return len(p), nil
	}
	if l.file == nil {
		file, err := unlinkedTemp(l.dir)
		if err != nil {
			return 0, err
		}
		l.file = file
	}
	n, err := l.file.WriteAt(l.tail, l.flushed)
	l.flushed += int64(n)
	l.tail = l.tail[:copy(l.tail, l.tail[n:])]
	return len(p), err
}

// unlinkedTemp makes a file that nobody else sees and that vanishes with its
// descriptor.
func unlinkedTemp(dir string) (*os.File, error) {
	file, err := os.CreateTemp(dir, "buildlog-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// waitID is the id of another activity of waiting. No builder's activity has it.
func (l *buildLog) waitID() uint64 { return firstWaitID + l.waits.Add(1) }

// finish ends the log: followers read what there is and then stop.
func (l *buildLog) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wakeLocked()
}

// free gives the file back once nobody holds the log. Call it once, when no client
// follows.
func (l *buildLog) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.freed = true
	l.freeLocked()
}

// hold keeps the log readable until release is called, once, and reports whether it
// still was.
func (l *buildLog) hold() (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.freed && l.holders == 0 {
		return nil, false
	}
	l.holders++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.holders--
		l.freeLocked()
	}, true
}

func (l *buildLog) freeLocked() {
	if !l.freed || l.holders > 0 {
		return
	}
	l.closed = true
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	l.tail = nil
}

// follow hands every message to log, from the first on, until the build's log is
// finished or ctx ends. Activity ids get offset added.
func (l *buildLog) follow(ctx context.Context, log nix.Logger, offset uint64) {
	l.read(&logReader{ctx: ctx, log: l}, func(m nix.LogMessage) error {
		log.Log(shiftIDs(m, offset))
		return nil
	})
}

// read hands on every message that r reads, until it ends or do fails.
func (l *buildLog) read(r *logReader, do func(nix.LogMessage) error) {
	dec := gob.NewDecoder(r)
	for {
		var m nix.LogMessage
		if dec.Decode(&m) != nil || do(m) != nil {
			return
		}
	}
}

// size is how many bytes it has by now; they end with a whole message.
func (l *buildLog) size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flushed + int64(len(l.tail))
}

// broken reports whether something is missing at its end, since it could not be written.
func (l *buildLog) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil
}

func shiftIDs(m nix.LogMessage, offset uint64) nix.LogMessage {
	if m.ID != 0 {
		m.ID += offset
	}
	if m.Parent != 0 {
		m.Parent += offset
	}
	return m
}

// logReader reads a log's bytes in order, waiting for more at the end.
type logReader struct {
	ctx context.Context
	log *buildLog
	off int64
	// bounded ends it at until, and not at the end of the finished log.
	bounded bool
	until   int64
	// idle is called before it waits; nil is nothing.
	idle func()
}

func (r *logReader) Read(p []byte) (int, error) {
	for {
		if r.bounded {
			if p = p[:min(int64(len(p)), r.until-r.off)]; len(p) == 0 {
				return 0, io.EOF
			}
		}
		n, changed, err := r.log.readAt(p, r.off)
		if n > 0 || err != nil {
			r.off += int64(n)
			return n, err
		}
		if r.idle != nil {
			r.idle()
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, errLogClosed
		}
	}
}

// readAt returns bytes from off, or a channel that closes when there may be
// more, or io.EOF at the end of a finished log.
func (l *buildLog) readAt(p []byte, off int64) (int, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch end := l.flushed + int64(len(l.tail)); {
	case off < l.flushed && l.file != nil:
		n, err := l.file.ReadAt(p[:min(int64(len(p)), l.flushed-off)], off)
		return n, nil, err
	case off < end && off >= l.flushed:
		return copy(p, l.tail[off-l.flushed:]), nil, nil
	case l.err != nil:
		return 0, nil, l.err
	case l.closed:
		return 0, nil, io.EOF
	}
	return 0, l.changed, nil
}

// attemptLog maps the activity ids of one daemon session, which start anew with
// every session, into a build's log, and stops what a lost session left running.
type attemptLog struct {
	to      *buildLog
	builder string
	next    *atomic.Uint64 // last id given out in the build's log; shared by its attempts

	mu   sync.Mutex        // guards what follows; comes before that of to
	open map[uint64]uint64 // the session's id -> ours
	// shown are those of our ids that have begun and not ended in to.
	shown map[uint64]bool
	// holding keeps messages back in held, since another attempt is shown; cut says
	// that some did not fit. Of one that is over nothing more is shown.
	holding, cut, over bool
	held               []nix.LogMessage
	weight             int // of held
}

func newAttemptLog(to *buildLog, builder string, next *atomic.Uint64) *attemptLog {
	return &attemptLog{to: to, builder: builder, next: next, open: map[uint64]uint64{}, shown: map[uint64]bool{}}
}

// maxOpenActivities bounds what a builder can make us remember.
const maxOpenActivities = 10_000

// Log maps and appends a message of the builder.
func (a *attemptLog) Log(m nix.LogMessage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch m.Kind {
	case nix.LogStartActivity:
		if len(a.open) >= maxOpenActivities {
			return
		}
		id := a.next.Add(1)
		a.open[m.ID] = id
		m.ID, m.Parent = id, a.open[m.Parent]
		m = withMachine(m, a.builder)
	case nix.LogStopActivity, nix.LogResult:
		id, known := a.open[m.ID]
		if !known {
			return
		}
		if m.Kind == nix.LogStopActivity {
			delete(a.open, m.ID)
		}
		m.ID = id
	}
	a.put(m)
}

// maxHeld is how much of the log of an attempt that is not shown is kept, in bytes.
const maxHeld = 256 << 10

// weight is about how much memory a message takes.
func weight(m nix.LogMessage) int {
	n := 128 + len(m.Text)
	for _, f := range m.Fields {
		n += 48 + len(f.Text)
	}
	return n
}

// put shows a message or keeps it back. The caller holds mu.
func (a *attemptLog) put(m nix.LogMessage) {
	switch {
	case a.over:
	case !a.holding:
		a.pass(m)
	case a.weight+weight(m) <= maxHeld:
		a.held = append(a.held, m)
		a.weight += weight(m)
	default:
		a.cut = true
	}
}

// pass shows a message. Of an activity whose begin was left out nothing is: clients
// end with an error at results of what they do not know.
func (a *attemptLog) pass(m nix.LogMessage) {
	switch m.Kind {
	case nix.LogStartActivity:
		a.shown[m.ID] = true
	case nix.LogStopActivity, nix.LogResult:
		if !a.shown[m.ID] {
			return
		}
	}
	if m.Kind == nix.LogStopActivity {
		delete(a.shown, m.ID)
	}
	a.to.Log(m)
}

// hold keeps back what comes from now on, so that two copies of a build do not mix
// their lines.
func (a *attemptLog) hold() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holding = true
}

// show ends that: what was kept back comes now.
func (a *attemptLog) show() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holding = false
	for _, m := range a.held {
		a.pass(m)
	}
	if a.cut {
		nix.Line(a.to, "some lines of '"+a.builder+"' are left out")
	}
	a.held, a.weight, a.cut = nil, 0, false
	a.stopClosed()
}

// stopClosed ends what is shown and whose end was left out. The caller holds mu.
func (a *attemptLog) stopClosed() {
	open := map[uint64]bool{}
	for _, id := range a.open {
		open[id] = true
	}
	for id := range a.shown {
		if !open[id] {
			a.pass(nix.LogMessage{Kind: nix.LogStopActivity, ID: id})
		}
	}
}

// drop leaves out what was kept back and what still comes, and ends what is shown.
func (a *attemptLog) drop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.shown {
		a.pass(nix.LogMessage{Kind: nix.LogStopActivity, ID: id})
	}
	a.held, a.over = nil, true
}

// withMachine puts the builder's name where tools look for the machine that a
// build runs on: the second field of the Build activity, empty as it comes from
// a builder's daemon.
func withMachine(m nix.LogMessage, builder string) nix.LogMessage {
	if m.Type == nix.ActivityBuild && len(m.Fields) >= 2 && m.Fields[1].IsText && m.Fields[1].Text == "" {
		fields := append([]nix.LogField(nil), m.Fields...)
		fields[1].Text = builder
		m.Fields = fields
	}
	return m
}

// stopAll ends the activities that the session did not end itself.
func (a *attemptLog) stopAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range a.open {
		a.put(nix.LogMessage{Kind: nix.LogStopActivity, ID: id})
	}
	clear(a.open)
}
