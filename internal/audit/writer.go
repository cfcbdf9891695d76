package audit

import (
	"cmp"
	"io"
	"os"
	"time"
)

// appender is what the writer needs of a file.
type appender interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
}

// writer is the goroutine that writes; all that is here belongs to it.
type writer struct {
	*Log
	timer *time.Timer // for the next sync, or the next try

	f    *os.File // nil after a failure that left it in doubt
	out  appender // f, or what tests put around it
	size int64    // of f
	last link     // the head of the chain
	buf  []byte

	opened   time.Time // when the first line of f was written
	reserved int64     // up to where f has space on disk
	full     bool      // the disk has no more to reserve
	looked   time.Time // when f was last seen under its name
	passed   bool      // another process has the name now
	postpone time.Time // not to rotate before

	dirty   bool // written since the last sync began
	syncing bool
	synced  chan error // has room for one
	// doubt is why a sync of f failed: what it holds may not be on disk, and no later
	// sync tells. Nil if none did.
	doubt error
	told  time.Time // when the log last told of a fault
}

func newWriter(l *Log) *writer {
	w := &writer{Log: l, timer: time.NewTimer(time.Hour), synced: make(chan error, 1)}
	w.timer.Stop()
	return w
}

func (w *writer) run() {
	defer close(w.ended)
	defer w.timer.Stop()
	for {
		select {
		case <-w.wake:
			if w.fault.Load() == nil {
				w.flush()
			}
		case <-w.timer.C:
			w.everySecond()
		case err := <-w.synced:
			w.hasSynced(err)
		case <-w.closing:
			w.finish()
			return
		}
	}
}

// everySecond syncs, or tries again.
func (w *writer) everySecond() {
	if w.fault.Load() == nil {
		w.beginSync()
		return
	}
	if err := w.mend(); err != nil {
		w.failed(err, nil)
		return
	}
	w.flush()
}

// mend brings the file to where it can be written again. One whose sync failed is
// put aside, once, and its successor has to show that it can be synced.
func (w *writer) mend() error {
	if w.doubt == nil {
		return w.ready()
	}
	if w.f != nil && w.size > maxFirstLine {
		w.putAside("a sync of the last file failed")
	}
	if err := w.ready(); err != nil {
		return err
	}
	if err := w.out.Sync(); err != nil {
		return err
	}
	w.doubt = nil
	return nil
}

// flush writes what is queued.
func (w *writer) flush() {
	batch := w.take()
	rest, err := w.writeAll(batch)
	written := batch[:len(batch)-len(rest)]
	var unsynced error
	if len(written) > 0 {
		unsynced = w.afterWrite()
	}
	for i := range written {
		written[i].answer(w.faultOf(unsynced))
	}
	w.settle(written)
	if err = cmp.Or(err, unsynced); err != nil {
		w.failed(err, rest)
		return
	}
	w.works()
}

// afterWrite makes durable what was written, now or soon.
func (w *writer) afterWrite() error {
	if w.opts.SyncAlways {
		return w.sync()
	}
	if !w.dirty && !w.syncing {
		w.timer.Reset(w.opts.pause)
	}
	w.dirty = true
	return nil
}

// sync returns when all that was written is on disk.
func (w *writer) sync() error {
	if w.doubt == nil {
		w.doubt = w.out.Sync()
	}
	return w.doubt
}

// writeAll returns what could not be written.
func (w *writer) writeAll(batch []entry) (rest []entry, err error) {
	for len(batch) > 0 {
		n, err := w.writeSome(batch)
		if err != nil {
			return batch, err
		}
		batch = batch[n:]
	}
	return nil, nil
}

// maxWrite is from how many bytes on no more lines are put into one system call.
const maxWrite = 64 << 10

// writeSome writes as much as fits into the file, by one system call.
func (w *writer) writeSome(batch []entry) (n int, err error) {
	if err := w.ready(); err != nil {
		return 0, err
	}
	lines, last := w.buf[:0], w.last
	for n < len(batch) && (n == 0 || len(lines) < maxWrite && !w.isFull(int64(len(lines)))) {
		lines, last = appendLine(lines, last, batch[n].at, batch[n].body)
		n++
	}
	if err := w.write(lines); err != nil {
		return 0, err
	}
	w.last = last
	if w.buf = lines; cap(lines) > 2*maxWrite {
		w.buf = nil
	}
	return n, nil
}

// write appends lines, or nothing.
func (w *writer) write(lines []byte) error {
	w.reserve(int64(len(lines)))
	n, err := w.out.Write(lines)
	if err == nil {
		w.size += int64(n)
		return nil
	}
	if n == 0 {
		return err
	}
	if w.out.Truncate(w.size) != nil {
		w.close() // open will see what is there
	}
	w.reserved = w.size // what was ahead is given back
	return err
}

// beginSync syncs beside the writer, so that those who wait for a line do not wait
// for the disk.
func (w *writer) beginSync() {
	if w.syncing || !w.dirty || w.f == nil {
		return
	}
	w.syncing, w.dirty = true, false
	out := w.out
	go func() { w.synced <- out.Sync() }()
}

func (w *writer) hasSynced(err error) {
	w.syncing = false
	if err != nil {
		w.doubt = err
		w.failed(err, nil)
		return
	}
	if w.dirty {
		w.timer.Reset(w.opts.pause)
	}
}

// awaitSync is called before the file is closed.
func (w *writer) awaitSync() {
	if w.syncing {
		w.hasSynced(<-w.synced)
	}
}

// finish writes what is left and closes the file.
func (w *writer) finish() {
	w.flush()
	w.flush() // what was dropped meanwhile
	w.awaitSync()
	if w.f != nil {
		if err := w.out.Sync(); err != nil {
			w.failed(err, nil)
		}
		w.close()
	}
	lost := uint64(len(w.take()))
	w.mu.Lock()
	lost += w.dropped
	w.mu.Unlock()
	if lost > 0 {
		w.log.Error("events are missing in the audit log", "events", lost)
	}
	w.log.Info("audit log closed", "line", w.last.seq, "head", w.last.hash.String())
}

// tellEvery is how often the log repeats that the audit log cannot be written.
const tellEvery = time.Minute

// faultOf is nil if err is.
func (w *writer) faultOf(err error) error {
	if err == nil {
		return nil
	}
	return w.newFault(err)
}

func (w *writer) newFault(err error) *Fault {
	since := w.opts.now()
	if f := w.fault.Load(); f != nil {
		since = f.Since
	}
	return &Fault{since, err}
}

// failed notes that nothing can be written now. What was not is kept and tried again.
func (w *writer) failed(err error, rest []entry) {
	f := w.newFault(err)
	w.fault.Store(f)
	w.giveBack(rest, f)
	if now := w.opts.now(); now.Sub(w.told) >= tellEvery {
		w.told = now
		w.log.Error("audit log cannot be written", "error", err, "since", f.Since, "builds_go_on", w.opts.Continue)
	}
	w.timer.Reset(w.opts.pause)
}

// works notes that all is well again, and what was lost meanwhile.
func (w *writer) works() {
	f := w.fault.Swap(nil)
	if f == nil {
		return
	}
	dropped := w.sayDropped(f.Err.Error())
	w.told = time.Time{}
	w.log.Info("audit log is written again", "since", f.Since, "dropped", dropped)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	w.timer.Reset(w.opts.pause)
}
