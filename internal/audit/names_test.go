package audit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// clock is one that tests put forward, so that the writer looks at its file.
type clock struct{ ahead atomic.Int64 }

func (c *clock) options(o *Options) {
	o.now = func() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }
}

func (c *clock) forward() { c.ahead.Add(int64(2 * lookEvery)) }

// Guards against a log that is written into a file that nobody reads, and that is
// removed in the end, since another one has its name: as with logrotate, or when
// somebody puts a copy there that lacks the last lines.
func TestAFileInItsPlaceIsNotTakenForAnotherProcess(t *testing.T) {
	for name, swap := range map[string]func(d *desk) error{
		"empty": func(d *desk) error {
			return errors.Join(os.Rename(d.file, d.file+".1"), os.WriteFile(d.file, nil, 0o600))
		},
		"foreign": func(d *desk) error {
			return errors.Join(os.Rename(d.file, d.file+".1"), os.WriteFile(d.file, []byte("x\n"), 0o600))
		},
		"cut": func(d *desk) error {
			lines := strings.SplitAfter(d.read(d.file), "\n")
			return errors.Join(os.WriteFile(d.file+".new", []byte(strings.Join(lines[:2], "")), 0o600), os.Rename(d.file+".new", d.file))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c clock
			d := newDesk(t).open(c.options)
			d.commit(0, 3)
			if err := swap(d); err != nil {
				t.Fatal(err)
			}
			c.forward()
			d.commit(3, 5)
			c.forward()
			d.commit(5, 6)
			d.close()
			drvs := d.drvs()
			if n := len(drvs); n < 3 || drvs[n-3] != numbered(3).Drv || drvs[n-1] != numbered(5).Drv {
				t.Errorf("events %q\n%s", drvs, d.journal)
			}
			if !strings.Contains(d.journal.String(), "moved away or removed") {
				t.Errorf("nobody is told: %s", d.journal)
			}
			var m *Mistake
			if _, err := Verify(d.files(), nil, func(FileReport) {}); !asMistake(err, &m) {
				t.Errorf("lines that are gone are not missed: %v\n%s", err, d.text())
			}
		})
	}
}

// Guards against a log that follows a link into somebody else's file, or goes on where
// nobody looks since there is one.
func TestALinkInItsPlaceIsAFault(t *testing.T) {
	var c clock
	d := newDesk(t).open(c.options, func(o *Options) { o.pause = 20 * time.Millisecond })
	d.commit(0, 1)
	other := d.file + ".other"
	d.write(other, "somebody's\n")
	if err := errors.Join(os.Remove(d.file), os.Symlink(other, d.file)); err != nil {
		t.Fatal(err)
	}
	c.forward()
	if err := d.Commit(numbered(1)); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("commit: %v", err)
	}
	if err := os.Remove(d.file); err != nil {
		t.Fatal(err)
	}
	d.eventually("it is written again", func() bool { return d.Fault() == nil })
	d.close()
	if text := d.read(other); text != "somebody's\n" || len(d.drvs()) != 1 {
		t.Errorf("the other file: %q, events %q", text, d.drvs())
	}
}

// Guards against a process that stays in a file which it does not rotate any more,
// after an upgrade that was begun and taken back.
func TestAfterAnUpgradeThatFailedTheOldProcessRotates(t *testing.T) {
	var c clock
	old := newDesk(t).open(small, c.options)
	old.commit(0, 3)
	next := &desk{TB: t, file: old.file, journal: &journal{}}
	next.open(small)
	c.forward()
	old.commit(3, 6) // in a file that has another name by now
	next.Record(Event{Kind: Start})
	next.close()
	c.forward()
	old.commit(6, 100)
	old.close()
	if n := len(old.drvs()); n != 100 {
		t.Errorf("%d events", n)
	}
	if notes := old.verified(); len(notes) != 0 {
		t.Errorf("notes %q", notes)
	}
	for _, file := range old.files() {
		if n := len(old.read(file)); n > 5<<10 {
			t.Errorf("%s has %d bytes\n%s", file, n, old.journal)
		}
	}
}

// Guards against an old process that puts the file of the new one aside when its own
// disk fails, so that the chain breaks and the new one does not rotate.
func TestABadSyncOfTheOldProcessLeavesTheNewFileAlone(t *testing.T) {
	var c clock
	dsk := &disk{}
	old := newDesk(t).open(c.options, dsk.options)
	old.commit(0, 9)
	next := &desk{TB: t, file: old.file, journal: &journal{}}
	next.open(c.options)
	next.commit(20, 29)
	for range 2 { // it has noticed, or has not
		dsk.set(false, true)
		_ = old.Commit(numbered(10))
		old.eventually("builds are refused", func() bool { return errors.Is(old.Fault(), syscall.EIO) })
		n := dsk.syncs.Load()
		old.eventually("it is tried again", func() bool { return dsk.syncs.Load() > n+1 })
		dsk.set(false, false)
		old.eventually("it is written again", func() bool { return old.Fault() == nil })
		c.forward()
		old.commit(11, 12)
		next.commit(30, 32)
	}
	old.close()
	next.close()
	if strings.Contains(next.journal.String(), "has taken over") {
		t.Errorf("the new process has lost its file\n%s", next.journal)
	}
	if files := next.files(); len(files) != 2 {
		t.Errorf("files %q", files)
	}
	next.verified()
}

// Guards against a file that others empty (logrotate's copytruncate) or add to, and
// nobody is told; and against one whose last line is cut, or filled up with zeros, when
// it is closed, by the length that it should have.
func TestAFileThatOthersWriteIsLeftAndTheAdminTold(t *testing.T) {
	for name, change := range map[string]func(d *desk) error{
		"emptied": func(d *desk) error { return os.Truncate(d.file, 0) },
		"added to": func(d *desk) error {
			f, err := os.OpenFile(d.file, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("x\n")
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, look := range []bool{false, true} {
				var c clock
				d := newDesk(t).open(c.options)
				d.commit(0, 2)
				if err := change(d); err != nil {
					t.Fatal(err)
				}
				if d.commit(2, 3); look {
					c.forward()
				}
				d.commit(3, 4)
				d.close()
				if text := d.text(); strings.Contains(text, "\x00") || !strings.HasSuffix(text, "\"}\n") {
					t.Errorf("look %t: cut or filled up: %q", look, text)
				}
				if told := strings.Contains(d.journal.String(), "somebody else has written"); told != look {
					t.Errorf("look %t: %s", look, d.journal)
				}
				var m *Mistake
				if _, err := Verify(d.files(), nil, func(FileReport) {}); !asMistake(err, &m) {
					t.Errorf("look %t: verify: %v", look, err)
				}
				if drvs := d.drvs(); drvs[len(drvs)-1] != numbered(3).Drv {
					t.Errorf("look %t: events %q", look, drvs)
				}
			}
		})
	}
}

// Guards against two processes that change names at once while one takes over from the
// other: a file in the wrong place of the chain, or one that nobody rotates any more.
func TestRotationAndTakeOverKeepOutOfEachOther(t *testing.T) {
	for round := range 30 {
		old := newDesk(t).open(small)
		enough := make(chan struct{})
		var running sync.WaitGroup
		running.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-enough:
					return
				default:
					old.commit(1000+i, 1001+i)
				}
			}
		})
		old.eventually("it rotates", func() bool { return len(old.files()) > 2 })
		next := &desk{TB: t, file: old.file, journal: &journal{}}
		next.open(small)
		next.commit(0, 30)
		close(enough)
		running.Wait()
		old.close()
		next.close()
		next.verified()
		if strings.Contains(next.journal.String(), "has taken over") {
			t.Fatalf("round %d: the new process has lost its file\n%s", round, next.journal)
		}
	}
}

// Guards against a try, a sync and a line in the log at each write while an old file
// cannot be rotated.
func TestARotationThatFailsIsPutOff(t *testing.T) {
	for name, limit := range map[string]func(*Options){"size": small, "age": func(o *Options) { o.RotateAge = time.Hour }} {
		t.Run(name, func(t *testing.T) {
			var c clock
			dsk := &disk{}
			d := newDesk(t).open(c.options, dsk.options, limit, func(o *Options) { o.pause = time.Hour })
			d.commit(0, 1)
			// The last name that there is, and none behind it.
			if err := errors.Join(os.WriteFile(d.file+".9999-12-31T23-59-59.999Z", nil, 0o600), os.Mkdir(d.file+".10000-01-01T00-00-00.000Z", 0o700)); err != nil {
				t.Fatal(err)
			}
			c.ahead.Store(int64(2 * time.Hour))
			d.commit(1, 40)
			if n := strings.Count(d.journal.String(), "cannot be rotated"); n != 1 || dsk.syncs.Load() > 1 {
				t.Errorf("%d tries, %d syncs", n, dsk.syncs.Load())
			}
		})
	}
}

// Guards against a policy that names a file of something else, which is then removed as
// the rest of a crash: a secret key has no newline either.
func TestASmallFileOfSomebodyIsNotRemoved(t *testing.T) {
	d := newDesk(t).open()
	d.close()
	for _, text := range []string{"nix.example.org-1:c2VjcmV0", "\x00\x00\x00\x00", `{"version":1}`} {
		d.write(d.file, text)
		before := len(d.files())
		d.open().close()
		files := d.files()
		if len(files) != before+1 || d.read(files[len(files)-2]) != text {
			t.Errorf("%q is gone: %q", text, files)
		}
	}
}

// Guards against a proxy that anybody on its machine can stop, by a lock on the directory
// of the log where others may read it, as /var/log.
func TestALockThatAnybodyCanTakeStopsNothing(t *testing.T) {
	var c clock
	d := newDesk(t).open(small, c.options)
	dir, err := os.Open(filepath.Dir(d.file))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.commit(0, 30)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("nothing is written")
		syscall.Flock(int(dir.Fd()), syscall.LOCK_UN)
		<-done
	}
	d.close()
	d.verified()
	if info, err := os.Stat(lockName(d.file)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the lock is for everybody: %v, %v", info, err)
	}
}

// Guards against a process that goes on in a file which is gone, since another one has
// its name and is locked: the one of before, which came first to begin a new one.
func TestAFileThatIsRemovedDuringAnUpgradeIsMissed(t *testing.T) {
	var c clock
	old := newDesk(t).open(c.options)
	old.commit(0, 2)
	next := &desk{TB: t, file: old.file, journal: &journal{}}
	next.open(c.options)
	next.commit(10, 12)
	if err := os.Remove(next.file); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c.forward()
		old.commit(20+i, 21+i)
		next.commit(30+i, 31+i)
	}
	old.close()
	c.forward()
	next.commit(40, 41)
	next.close()
	if n := len(next.drvs()); n != 2+3+3+1 {
		t.Errorf("%d events\n%s", n, next.text())
	}
	if notes := next.verified(); len(notes) != 1 || !strings.Contains(notes[0], "may have been removed") {
		t.Errorf("notes %q\n%s", notes, next.text())
	}
}
