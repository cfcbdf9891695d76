package policy

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"syscall"
	"time"
)

// A policy is watched by looking at its files once a second, and not by inotify: what
// counts is where a path leads at the moment, and tools that manage configuration
// exchange symbolic links somewhere on the way, on file systems that tell
// nobody. To look at a dozen files takes some microseconds.

const (
	watchInterval = time.Second
	// watchPatience is how many looks in a row may find another change before a file
	// that never rests is loaded all the same.
	watchPatience = 5
)

// stamp is what tells that a file is another one, or has another content: not only its
// time, which tools set back. The zero value stands for one that cannot be looked at.
type stamp struct {
	device, inode     uint64
	size              int64
	modified, changed time.Time
	mode              fs.FileMode
}

// stamps are those of files, by their paths as the policy has them.
type stamps map[string]stamp

// note looks at a file before it is read: a change in between is one more change, and
// none that is missed.
func (s stamps) note(path string) {
	if _, known := s[path]; !known {
		s[path] = stampOf(path)
	}
}

// now looks at the same files again.
func (s stamps) now() stamps {
	again := make(stamps, len(s))
	for path := range s {
		again[path] = stampOf(path)
	}
	return again
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	s := stamp{size: info.Size(), modified: info.ModTime(), mode: info.Mode()}
	s.device, s.inode, s.changed = identityOf(info)
	return s
}

// notingDisk is a disk that remembers what it was asked for, and how that was.
type notingDisk struct {
	disk
	seen stamps
}

func (d *notingDisk) read(path string, limit int64) ([]byte, fs.FileMode, error) {
	d.seen.note(path)
	text, mode, err := d.disk.read(path, limit)
	d.failed(path, err)
	return text, mode, err
}

func (d *notingDisk) list(path string, limit int) ([]string, fs.FileMode, error) {
	d.seen.note(path) // whose time changes with what is in it
	names, mode, err := d.disk.list(path, limit)
	d.failed(path, err)
	return names, mode, err
}

func (d *notingDisk) secret(path string, limit int64) ([]byte, secretFile, error) {
	d.seen.note(path)
	text, of, err := d.disk.secret(path, limit)
	d.failed(path, err)
	return text, of, err
}

func (d *notingDisk) hostKeyTypes(path, address string) ([]string, error) {
	d.seen.note(path)
	types, err := d.disk.hostKeyTypes(path, address)
	d.failed(path, err)
	return types, err
}

// failed has the next look find a change, if it was not for the file that it could not
// be read.
func (d *notingDisk) failed(path string, err error) {
	for _, passing := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.ESTALE} {
		if errors.Is(err, passing) {
			d.seen[path] = stamp{size: -1} // which no file has
		}
	}
}

// Watch calls changed, which is to load the policy, when a file of the last attempt to
// load it was changed and then left alone for a moment, for as long as the policy in
// force says that it is to be watched. It returns when ctx ends.
func (l *Live) Watch(ctx context.Context, changed func()) {
	var w watcher
	for {
		var tick <-chan time.Time
		if l.Current().Reload.Watch {
			tick = time.After(watchInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-l.swapped:
		case <-tick:
			if w.look(l.changes()) {
				changed()
			}
		}
	}
}

// changes returns how the files of the last attempt are now, nil if they are as they
// were.
func (l *Live) changes() stamps {
	l.loading.Lock()
	defer l.loading.Unlock()
	now := l.read.now()
	if maps.Equal(now, l.read) {
		return nil
	}
	return now
}

// watcher waits for files to come to rest.
type watcher struct {
	last  stamps // at the last look, if they had changed then
	looks int    // in a row that found a change
}

// look takes in what changes says, and reports whether it is time to load.
func (w *watcher) look(now stamps) bool {
	if now == nil {
		*w = watcher{}
		return false
	}
	rested := w.last != nil && maps.Equal(now, w.last)
	w.last = now
	w.looks++
	if rested || w.looks >= watchPatience {
		*w = watcher{}
		return true
	}
	return false
}
