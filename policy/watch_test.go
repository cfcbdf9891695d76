package policy

import (
	"context"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// watched is a policy that is watched, in a bubble whose time is virtual.
func watched(t *testing.T, d dir, text string) (l *Live, loads *atomic.Int64) {
	t.Helper()
	l, err := NewLive(d.write("policy.yaml", text, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	loads = new(atomic.Int64)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Watch(ctx, func() {
			loads.Add(1)
			l.Reload()
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return l, loads
}

// pass lets looks go by.
func pass(looks int) {
	time.Sleep(time.Duration(looks)*watchInterval + time.Millisecond)
	synctest.Wait()
}

// replace puts a file in the place of another of the same size and time, as tools do
// that manage configuration.
func (d dir) replace(t *testing.T, name, text string) {
	t.Helper()
	info, err := os.Stat(d.path(name))
	if err != nil {
		t.Fatal(err)
	}
	d.write(name+".new", text, info.Mode())
	if err := os.Chtimes(d.path(name+".new"), info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.path(name+".new"), d.path(name)); err != nil {
		t.Fatal(err)
	}
}

const watching = "reload: {watch: true}\n"

// Guards against a change that is not seen: of the policy, of a file that it names, by
// a symbolic link, and after a refusal.
func TestWatchSeesEveryChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDir(t)
		d.write("some.keys", authorizedLine("anna")+"\n", 0o644)
		d.write("first/revoked", "# nobody\n", 0o644)
		d.write("second/revoked", authorizedLine("anna")+"\n", 0o644)
		if err := os.Symlink("first", d.path("now")); err != nil {
			t.Fatal(err)
		}
		text := minimal + watching + "revoked_keys: now/revoked\nprincipals: [{name: anna, role: full, authorized_keys: some.keys}]\n"
		l, loads := watched(t, d, text)
		if pass(3); loads.Load() != 0 {
			t.Fatalf("loaded %d times without a change", loads.Load())
		}
		d.replace(t, "some.keys", authorizedLine("otto")+"\n")
		if pass(2); loads.Load() != 1 || !lets(l.Current(), "otto") || lets(l.Current(), "anna") {
			t.Errorf("key file: %d loads", loads.Load())
		}
		d.write("policy.yaml", text+"nonsense: 1\n", 0o644)
		if pass(6); loads.Load() != 2 || !lets(l.Current(), "otto") {
			t.Errorf("a refused policy: %d loads", loads.Load())
		}
		d.write("policy.yaml", text+"#\n", 0o644)
		if pass(2); loads.Load() != 3 {
			t.Errorf("corrected: %d loads", loads.Load())
		}
		d.replace(t, "some.keys", authorizedLine("anna")+"\n")
		if err := os.Remove(d.path("now")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("second", d.path("now")); err != nil {
			t.Fatal(err)
		}
		if pass(2); loads.Load() != 4 || lets(l.Current(), "anna") || lets(l.Current(), "otto") {
			t.Errorf("link: %d loads", loads.Load())
		}
		if err := os.Remove(d.path("some.keys")); err != nil {
			t.Fatal(err)
		}
		pass(2)
		d.write("some.keys", authorizedLine("otto")+"\n", 0o644)
		if pass(2); loads.Load() != 6 || !lets(l.Current(), "otto") {
			t.Errorf("a file that was away: %d loads", loads.Load())
		}
	})
}

// Guards against a policy that is watched although it does not say so, and against one
// that is watched for ever.
func TestWatchIsOffUntilThePolicySaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDir(t)
		l, loads := watched(t, d, withKey("anna"))
		d.write("policy.yaml", withKey("otto")+watching, 0o644)
		if pass(10); loads.Load() != 0 || !lets(l.Current(), "anna") {
			t.Fatalf("loaded %d times", loads.Load())
		}
		if err := l.Reload(); err != nil {
			t.Fatal(err)
		}
		if pass(5); loads.Load() != 0 {
			t.Errorf("what was loaded by hand was loaded again %d times", loads.Load())
		}
		d.write("policy.yaml", withKey("anna"), 0o644)
		if pass(2); loads.Load() != 1 || !lets(l.Current(), "anna") {
			t.Errorf("loaded %d times", loads.Load())
		}
		d.write("policy.yaml", withKey("otto"), 0o644)
		if pass(10); loads.Load() != 1 {
			t.Error("watched on")
		}
	})
}

// Guards against a file that is loaded while somebody writes it, and against one that
// never rests and is never loaded.
func TestWatchWaitsForFilesToRest(t *testing.T) {
	a, b, c := stamps{"f": {size: 1}}, stamps{"f": {size: 2}}, stamps{"f": {size: 3}}
	for _, looks := range []struct {
		seen []stamps
		load []bool
	}{
		{[]stamps{nil, a, a, nil}, []bool{false, false, true, false}},
		{[]stamps{a, b, b, nil}, []bool{false, false, true, false}},
		{[]stamps{a, nil, a, nil}, []bool{false, false, false, false}}, // and back
		{[]stamps{a, b, c, a, b, c}, []bool{false, false, false, false, true, false}},
	} {
		var w watcher
		for i, now := range looks.seen {
			if got := w.look(now); got != looks.load[i] {
				t.Errorf("%v: look %d says %t", looks.seen, i, got)
			}
		}
	}
}

// fullDisk is one of a process that has no more files to open.
type fullDisk struct {
	realDisk
	full atomic.Bool
}

func (d *fullDisk) read(path string, limit int64) ([]byte, fs.FileMode, error) {
	if d.full.Load() {
		return nil, 0, &fs.PathError{Op: "open", Path: path, Err: syscall.EMFILE}
	}
	return d.realDisk.read(path, limit)
}

// Guards against a change that is never loaded since the first try failed for a reason
// that has nothing to do with the files; and against other mistakes that are tried again
// and again.
func TestWatchTriesAgainWhatFailedForAnotherReasonThanTheFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDir(t)
		l, loads := watched(t, d, withKey("anna")+watching)
		disk := &fullDisk{}
		l.loading.Lock()
		l.disk = disk
		l.loading.Unlock()
		disk.full.Store(true)
		d.write("policy.yaml", withKey("otto")+watching, 0o644)
		if pass(10); loads.Load() < 2 || !lets(l.Current(), "anna") {
			t.Errorf("%d loads", loads.Load())
		}
		disk.full.Store(false)
		if pass(3); !lets(l.Current(), "otto") {
			t.Error("not loaded when there were files again")
		}
		before := loads.Load()
		d.write("policy.yaml", "include: none\n"+withKey("anna")+watching, 0o644)
		if pass(10); loads.Load() != before+1 {
			t.Errorf("%d loads of a mistake", loads.Load()-before)
		}
	})
}
