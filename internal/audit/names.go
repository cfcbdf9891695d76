package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Which file has which name. Two processes share a log during an upgrade, and others
// may move or remove what is in its directory.

// lockName is that of the lock of a log. What is hidden is no argument of verify's by
// accident.
func lockName(file string) string {
	return filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".lock")
}

// alone holds the lock of all names while they are changed, so that two processes do
// not do that at once. It is a file of its own since anybody who may read the directory
// could lock that. Where there can be none, it goes without.
func (w *writer) alone(change func() error) error {
	if err := makeDir(w.opts.File); err != nil {
		return err
	}
	f, err := openFile(lockName(w.opts.File), os.O_CREATE)
	if err != nil {
		return change()
	}
	defer f.Close()
	for {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			return change()
		}
	}
}

// look finds out whether the file still has its name and is as it was written, and
// sees to it that there is one.
func (w *writer) look() error {
	err := w.alone(func() error {
		_, err := w.standing()
		return err
	})
	if err != nil {
		w.looked = time.Time{} // nothing is written before that is well
	}
	return err
}

// standing reports whether the file has its name. If not, it does what is to be done
// then.
func (w *writer) standing() (bool, error) {
	w.looked = w.opts.now()
	ours, err := w.f.Stat()
	if err != nil {
		return false, err
	}
	theirs, err := os.Lstat(w.opts.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		w.log.Error("file of the audit log was moved away or removed by somebody; a new one is begun")
		w.close()
		return false, w.begin(reasonGone, "")
	case err != nil:
		return false, err
	case !os.SameFile(ours, theirs):
		return false, w.displaced(ours)
	case ours.Size() != w.size:
		w.log.Error("somebody else has written into the file of the audit log; a new one is begun", "bytes", ours.Size(), "expected", w.size)
		w.close()
		return false, w.beginBehind(reasonWritten)
	}
	w.passed = false
	return true, nil
}

// displaced is called when another file has the name: that of a process which has
// taken over and still has it locked; or of one that had, and ended, as after an
// upgrade that failed; or one that somebody has put there.
func (w *writer) displaced(ours fs.FileInfo) error {
	f, err := openFile(w.opts.File, 0)
	if err != nil {
		return err
	}
	locked := errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
	f.Close()
	full := w.isAmongFull(ours)
	if full && locked {
		if !w.passed {
			w.passed = true
			w.log.Warn("another process has taken over the audit log; this one ends it in the file that it had")
		}
		return nil
	}
	if full {
		w.log.Warn("the process that had taken over the audit log has ended; this one goes on in its file")
	} else {
		w.log.Error("file of the audit log was moved away or removed by somebody, and another one is in its place; a new one is begun")
	}
	w.close()
	if full || locked {
		return w.open()
	}
	return w.beginBehind(reasonGone)
}

// isAmongFull reports whether a file has the name of a full one, as it has after another
// process has taken over.
func (w *writer) isAmongFull(ours fs.FileInfo) bool {
	full, err := rotated(w.opts.File)
	return err == nil && slices.ContainsFunc(full, func(name string) bool {
		info, err := os.Lstat(name)
		return err == nil && os.SameFile(ours, info)
	})
}

// takeOver leaves a file to the process that has it locked, and begins another.
func (w *writer) takeOver(f *os.File, locked error) error {
	defer f.Close()
	if !errors.Is(locked, syscall.EWOULDBLOCK) {
		return fmt.Errorf("lock: %w", locked)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t, err := readTail(f, info.Size())
	if err != nil {
		return err
	}
	name, err := w.rename()
	if err != nil {
		return err
	}
	w.last = t.last
	w.log.Info("another process still writes the audit log", "file", name)
	return w.begin(reasonHandover, name)
}

// rotate begins a new file. If that cannot be done now it is put off.
func (w *writer) rotate(reason string) error {
	w.awaitSync()
	if err := w.sync(); err != nil {
		return err
	}
	return w.alone(func() error {
		if there, err := w.standing(); !there {
			return err
		}
		name, err := w.rename()
		if err != nil {
			w.postpone = w.opts.now().Add(postponed)
			w.log.Error("audit log cannot be rotated; it goes on", "error", err)
			return nil
		}
		w.close()
		w.log.Info("audit log rotated", "file", name, "line", w.last.seq, "head", w.last.hash.String())
		return w.begin(reason, name)
	})
}

// putAside leaves a file that cannot be relied on any more, unless its name is another
// process's already.
func (w *writer) putAside(reason string) {
	if err := w.alone(func() error {
		if there, err := w.standing(); !there {
			return err
		}
		w.close()
		return w.beginBehind(reason)
	}); err != nil {
		w.log.Error("cannot begin another file of the audit log", "error", err)
	}
}

// beginBehind renames the file and begins another.
func (w *writer) beginBehind(reason string) error {
	name, err := w.rename()
	if err != nil {
		return err
	}
	return w.begin(reason, name)
}

// rename gives the file the name of a full one.
func (w *writer) rename() (string, error) {
	name, err := rotatedName(w.opts.File, w.opts.now())
	if err != nil {
		return "", err
	}
	return name, os.Rename(w.opts.File, name)
}
