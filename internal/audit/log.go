package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// Options say how a log is kept.
type Options struct {
	// File is appended to; its directory is made if it is missing. Both are for their
	// owner alone.
	File string
	// SyncAlways makes Commit wait until an event is on disk. Without it files are
	// synced within a second, so that a crash of the machine can take as much.
	SyncAlways bool
	// RotateSize in bytes and RotateAge are when a file is full; 0 is never.
	RotateSize int64
	RotateAge  time.Duration
	// Keep is how many full files stay; older ones are removed.
	Keep int
	// Continue lets Commit and Fault return nil while nothing can be written.
	Continue bool
	// Version of the program, for the first line of each file.
	Version string
	// Log is told of rotations, of heads, and of what is wrong. Nil is slog.Default.
	Log *slog.Logger

	// wrap stands between the writer and a file, in tests.
	wrap func(*os.File) appender
	now  func() time.Time
	// pause is for how long what is written may not be on disk, and after which a file
	// is tried again that failed.
	pause time.Duration
}

// ErrClosed is what comes after Close.
var ErrClosed = errors.New("the audit log is closed")

const (
	// maxQueue bounds what waits to be written, in bytes. Whoever records more waits
	// for the writer; while that cannot write, events beyond it are dropped, counted.
	maxQueue = 4 << 20
	// entryCost is what an event in the queue takes beside its text.
	entryCost    = 128
	defaultPause = time.Second
)

// Refused logins need no key, so anybody can make them.
const (
	refusalsPerSecond = 1
	refusalsAtOnce    = 100
)

// Log is the audit log, open for writing. Its methods are safe for concurrent use.
// Make one with [Open], end it with Close.
type Log struct {
	opts Options
	log  *slog.Logger

	refusals   *rate.Limiter
	suppressed atomic.Uint64

	mu      sync.Mutex // guards what follows
	room    sync.Cond  // signalled when some of the queue was written
	queue   []entry
	queued  int // bytes, with those that the writer has taken and not written
	dropped uint64
	closed  bool

	wake    chan struct{} // there is something in the queue; has room for one
	closing chan struct{}
	ended   chan struct{}
	// fault is why nothing can be written now, nil if it can.
	fault atomic.Pointer[Fault]
}

// entry is an event on its way.
type entry struct {
	at   time.Time
	body []byte
	done chan error // has room for one; nil if nobody waits
}

// Fault says why the log cannot be written.
type Fault struct {
	Since time.Time
	Err   error
}

func (f *Fault) Error() string { return "write the audit log: " + f.Err.Error() }

func (f *Fault) Unwrap() error { return f.Err }

// Open opens a log and begins to write. What a crash has left of a line is closed
// off. A file that another process is still writing is left to it, under the name of
// a full one: so a new process can take over while the old one ends.
func Open(opts Options) (*Log, error) {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.now == nil {
		opts.now = time.Now
	}
	if opts.pause == 0 {
		opts.pause = defaultPause
	}
	l := &Log{
		opts: opts, log: opts.Log.With("audit", opts.File),
		refusals: rate.NewLimiter(refusalsPerSecond, refusalsAtOnce),
		wake:     make(chan struct{}, 1), closing: make(chan struct{}), ended: make(chan struct{}),
	}
	l.room.L = &l.mu
	w := newWriter(l)
	switch err := w.alone(w.open); {
	case err == nil:
		l.log.Info("audit log opened", "line", w.last.seq, "head", w.last.hash.String())
	case passes(err): // as if it had come later
		w.failed(err, nil)
	default:
		return nil, fmt.Errorf("open the audit log %s: %w", opts.File, err)
	}
	go w.run()
	return l, nil
}

// passes reports whether somebody can mend what is wrong while the proxy runs.
func passes(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EIO)
}

// Record notes an event, which is written soon. It waits only while more is queued
// than may be in memory.
func (l *Log) Record(e Event) {
	if e.Kind == LoginRefused && !l.mayRefuse(&e) {
		return
	}
	l.put(&e, nil)
}

// Commit notes an event and returns when it is written, and with SyncAlways on disk.
// The error is a [*Fault], or ErrClosed.
func (l *Log) Commit(e Event) error {
	done := make(chan error, 1)
	if !l.put(&e, done) {
		return l.orContinue(ErrClosed)
	}
	return l.orContinue(<-done)
}

// Fault returns why nothing can be written now. It is nil if it can, and with
// Continue.
func (l *Log) Fault() error {
	if f := l.Trouble(); f != nil {
		return l.orContinue(f)
	}
	return nil
}

// Trouble returns why nothing can be written now, with Continue too. It is nil if it can.
func (l *Log) Trouble() *Fault { return l.fault.Load() }

func (l *Log) orContinue(err error) error {
	if l.opts.Continue {
		return nil
	}
	return err
}

// Close writes what is queued and closes the file. Events that come later are lost.
func (l *Log) Close() error {
	if n := l.suppressed.Swap(0); n > 0 {
		l.put(&Event{Kind: LoginRefused, Suppressed: n}, nil)
	}
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.room.Broadcast()
	l.mu.Unlock()
	if !closed {
		close(l.closing)
	}
	<-l.ended
	return l.Fault()
}

// mayRefuse bounds the lines that people without a key can make.
func (l *Log) mayRefuse(e *Event) bool {
	if !l.refusals.AllowN(l.opts.now(), 1) {
		l.suppressed.Add(1)
		return false
	}
	e.Suppressed = l.suppressed.Swap(0)
	return true
}

// put reports false when it is too late. While nothing can be written it answers
// whoever waits at once.
func (l *Log) put(e *Event, done chan error) bool {
	at := e.Time
	if at.IsZero() {
		at = l.opts.now()
	}
	item := entry{at: at, body: appendEvent(make([]byte, 0, 768), e), done: done}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.queued > maxQueue && !l.closed && l.fault.Load() == nil {
		l.room.Wait()
	}
	switch fault := l.fault.Load(); {
	case l.closed:
		return false
	case fault != nil:
		item.answer(fault)
		if l.queued > maxQueue {
			l.dropped++
			return true
		}
	}
	l.queue = append(l.queue, item)
	l.queued += item.cost()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// answer tells whoever waits, once.
func (e *entry) answer(err error) {
	if e.done != nil {
		e.done <- err
		e.done = nil
	}
}

// cost is what an entry takes of the queue.
func (e *entry) cost() int { return len(e.body) + entryCost }

// take empties the queue.
func (l *Log) take() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.queue
	l.queue = nil
	return batch
}

// settle makes room where entries were that are written.
func (l *Log) settle(written []entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range written {
		l.queued -= written[i].cost()
	}
	l.room.Broadcast()
}

// giveBack puts entries before those that came meanwhile. Whoever waits for any of
// them, or for room, learns of the fault.
func (l *Log) giveBack(rest []entry, f *Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(rest, l.queue...)
	for i := range l.queue {
		l.queue[i].answer(f)
	}
	l.room.Broadcast()
}

// sayDropped queues, before all else, how many events are missing, and returns that.
func (l *Log) sayDropped(reason string) (dropped uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if dropped, l.dropped = l.dropped, 0; dropped > 0 {
		e := entry{at: l.opts.now(), body: appendEvent(nil, &Event{Kind: Dropped, Count: dropped, Reason: reason})}
		l.queue = append([]entry{e}, l.queue...)
		l.queued += e.cost()
	}
	return dropped
}
