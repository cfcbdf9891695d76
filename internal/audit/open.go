package audit

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// maxFirstLine is more than a first line has, in bytes.
	maxFirstLine = 2 << 10
	// reserveAhead is how much space on disk a file has beyond what is written, so that
	// a full disk does not stop builds before somebody could do something about it.
	reserveAhead = 4 << 20
	// lookEvery is how often the writer looks whether its file is still there.
	lookEvery = time.Second
	// postponed is how long a rotation that failed is put off.
	postponed = time.Minute
)

// Why there is a new file, in its first line.
const (
	reasonFirst    = "there was none"
	reasonGone     = "the file was moved away or removed"
	reasonWritten  = "somebody else has written into the last one"
	reasonHandover = "another process still writes the last one"
	reasonSize     = "the last one was full (rotate_size)"
	reasonAge      = "the last one was old (rotate_age)"
	reasonBroken   = "the last one does not end in a whole line"
)

// ready opens or changes the file, if need be.
func (w *writer) ready() error {
	now := w.opts.now()
	switch {
	case w.f == nil:
		return w.alone(w.open)
	case w.size > maxFirstLine && w.isFull(0):
		return w.rotate(reasonSize)
	case w.opts.RotateAge > 0 && now.Sub(w.opened) >= w.opts.RotateAge && w.mayRotate():
		return w.rotate(reasonAge)
	case now.Sub(w.looked) >= lookEvery || now.Before(w.looked):
		return w.look()
	}
	return nil
}

// isFull reports whether the file is, with so many bytes more.
func (w *writer) isFull(more int64) bool {
	return w.opts.RotateSize > 0 && w.size+more >= w.opts.RotateSize && w.mayRotate()
}

func (w *writer) mayRotate() bool { return !w.passed && w.opts.now().After(w.postpone) }

// open goes on with the file that is there, or begins one. The caller holds the lock
// of names, as do those of all that change them.
func (w *writer) open() error {
	f, err := openFile(w.opts.File, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return w.beginAfterLast(reasonFirst)
	}
	if err != nil {
		return err
	}
	if err := w.check(f); err != nil {
		f.Close()
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return w.takeOver(f, err)
	}
	return w.goOn(f)
}

// openFile opens for appending. No link is followed: the name might lead into a file
// that is somebody else's.
func openFile(name string, flags int) (*os.File, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_APPEND|syscall.O_NOFOLLOW|flags, 0o600)
}

// check refuses what is no file, and takes others' access away.
func (w *writer) check(f *os.File) error {
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("it is not a regular file")
	case info.Mode().Perm() != 0o600:
		return f.Chmod(0o600)
	}
	return nil
}

// goOn continues a file. What a crash left of a line is ended.
func (w *writer) goOn(f *os.File) error {
	info, err := f.Stat()
	var t tail
	if err == nil {
		t, err = readTail(f, info.Size())
	}
	switch {
	case err != nil:
		f.Close()
		return err
	case !t.ok && t.noLine && beginsFirstLine(f, t.size): // a crash in it
		err := f.Truncate(0)
		f.Close()
		if err == nil {
			err = os.Remove(w.opts.File)
		}
		if err != nil {
			return err
		}
		return w.beginAfterLast(reasonFirst)
	case !t.ok:
		f.Close()
		w.log.Error("audit log does not end in a whole line: it was changed, or the disk has lost something; a new file is begun")
		return w.beginBehind(reasonBroken)
	}
	w.use(f, t.size)
	w.last, w.opened = t.last, firstTime(f)
	return w.closeOff(t)
}

// beginsFirstLine reports whether a file without a newline is what a crash may leave of
// a first line, and nothing of somebody else's.
func beginsFirstLine(f io.ReaderAt, size int64) bool {
	if size > maxFirstLine {
		return false
	}
	start := make([]byte, min(size, int64(len(lineStart))))
	_, err := f.ReadAt(start, 0)
	return err == nil && strings.HasPrefix(lineStart, string(start))
}

// closeOff ends a line that a crash left.
func (w *writer) closeOff(t tail) (err error) {
	switch {
	case t.noEnd:
		err = w.write([]byte("\n"))
	case t.torn > 0:
		w.log.Warn("audit log ended in a part of a line, as after a crash", "bytes", t.torn)
		e := Event{Kind: Recovered, Bytes: uint64(t.torn), SHA256: hex.EncodeToString(t.sum[:])}
		lines, last := appendLine([]byte("\n"), w.last, w.opts.now(), appendEvent(nil, &e))
		if err = w.write(lines); err == nil {
			w.last = last
		}
	}
	if err != nil {
		w.close()
	}
	return err
}

// beginAfterLast begins a file behind the last full one, if there is any.
func (w *writer) beginAfterLast(reason string) error {
	full, err := rotated(w.opts.File)
	if err != nil {
		return err
	}
	after := ""
	if len(full) > 0 {
		after = full[len(full)-1]
		w.log.Warn("file of the audit log is not there, although full ones are; a new one is begun", "after", after)
		if head, ok := headOf(after); ok && w.last.seq == 0 {
			w.last = head
		}
	}
	return w.begin(reason, after)
}

// begin makes a new file with its first line.
func (w *writer) begin(reason, after string) error {
	f, err := openFile(w.opts.File, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("lock: %w", err)
	}
	e := Event{Kind: Begin, Version: w.opts.Version, Reason: reason}
	if after != "" {
		e.After = filepath.Base(after)
	}
	w.use(f, 0)
	now := w.opts.now()
	lines, last := appendLine(nil, w.last, now, appendEvent(nil, &e))
	if err := w.write(lines); err != nil {
		w.close()
		return errors.Join(err, os.Remove(w.opts.File))
	}
	w.last, w.opened, w.dirty = last, now, true
	w.timer.Reset(w.opts.pause)
	w.forget()
	return syncDir(filepath.Dir(w.opts.File))
}

// forget removes the oldest files.
func (w *writer) forget() {
	removed, err := removeOldest(w.opts.File, w.opts.Keep)
	if len(removed) > 0 {
		w.log.Info("oldest files of the audit log removed", "files", removed)
	}
	if err != nil {
		w.log.Error("old files of the audit log stay", "error", err)
	}
}

func (w *writer) use(f *os.File, size int64) {
	w.f, w.out, w.size, w.reserved, w.looked, w.passed = f, f, size, size, w.opts.now(), false
	if w.opts.wrap != nil {
		w.out = w.opts.wrap(f)
	}
}

// close gives back the space that was reserved, and the lock. It takes the length that
// the file has: if that is not ours, it is somebody's, or what a failed write left.
func (w *writer) close() {
	w.awaitSync()
	if info, err := w.f.Stat(); err == nil {
		_ = w.f.Truncate(info.Size()) // without it the space is lost until the file goes
	}
	w.f.Close()
	w.f, w.out, w.dirty = nil, nil, false
}

// reserve has space on disk for so many bytes more, and for what follows.
func (w *writer) reserve(more int64) {
	const keepSize = 1 // FALLOC_FL_KEEP_SIZE
	if w.size+more+reserveAhead/2 <= w.reserved {
		return
	}
	until := w.size + more + reserveAhead
	err := syscall.Fallocate(int(w.f.Fd()), keepSize, w.reserved, until-w.reserved)
	switch {
	case err == nil:
		w.reserved, w.full = until, false
	case errors.Is(err, syscall.ENOSPC) && !w.full:
		w.full = true
		w.log.Warn("disk is full; the audit log goes on in the space that it has reserved", "bytes", max(0, w.reserved-w.size))
	}
}

// firstTime is when the first line of a file was written; the zero time, for an age
// beyond all, if it does not say so.
func firstTime(f io.ReaderAt) time.Time {
	const before, layout = `,"time":"`, "2006-01-02T15:04:05.000000Z"
	head := make([]byte, 128)
	n, _ := f.ReadAt(head, 0)
	_, rest, ok := bytes.Cut(head[:n], []byte(before))
	if !ok || len(rest) < len(layout) {
		return time.Time{}
	}
	t, _ := time.Parse(layout, string(rest[:len(layout)]))
	return t
}
