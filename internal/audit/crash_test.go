package audit

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Guards against a crash after which nothing can be written, or verified, or a line
// is lost that was whole.
func TestTornLineIsClosedOffAndTheChainGoesOn(t *testing.T) {
	d := newDesk(t).open()
	d.commit(0, 3)
	d.close()
	text := d.read(d.file)
	lastLine := strings.LastIndexByte(strings.TrimSuffix(text, "\n"), '\n') + 1
	for size := lastLine; size <= len(text); size++ {
		if size > lastLine+3 && size < len(text)-3 && size%11 != 0 {
			continue
		}
		d.write(d.file, text[:size])
		d.open()
		d.commit(3, 4)
		d.close()
		notes := d.verified()
		torn := size > lastLine && size < len(text)-1
		if torn != (len(notes) == 1 && strings.Contains(notes[0], "a crash left of a line")) {
			t.Fatalf("cut at %d of %d to %d: notes %q", size, lastLine, len(text), notes)
		}
		want := 3
		if size >= len(text)-1 { // a line that lacks its newline alone is whole
			want = 4
		}
		if n := len(d.drvs()); n != want {
			t.Fatalf("cut at %d of %d to %d: %d events", size, lastLine, len(text), n)
		}
	}
}

// Guards against a forged recovery: a line that somebody cuts is not a crash's.
func TestACutLineIsNoCrash(t *testing.T) {
	d := newDesk(t).open()
	d.commit(0, 3)
	d.close()
	text := d.read(d.file)
	d.write(d.file, text[:len(text)-30])
	d.open()
	d.commit(3, 4)
	d.close()
	lines := strings.SplitAfter(d.read(d.file), "\n")
	lines[3] = lines[3][:60] + "\n" // what the crash left is now less
	d.write(d.file, strings.Join(lines, ""))
	d.wantMistake([]string{d.file}, d.file, 4)
}

// Guards against an end that was changed while the proxy was down and is then taken
// for what a crash left.
func TestAChangedEndIsLeftInItsFile(t *testing.T) {
	for _, change := range []func(string) string{
		func(text string) string { return strings.Replace(text, "Built", "Bullt", -1) },
		func(text string) string { return text + "\x00\x00\x00\n" },
		func(text string) string { return strings.Repeat("\n", 5000) },
	} {
		d := newDesk(t).open()
		d.commit(0, 1)
		d.close()
		d.write(d.file, change(d.read(d.file)))
		d.open()
		d.commit(1, 3)
		d.close()
		files := d.files()
		if len(files) != 2 || !strings.Contains(d.journal.String(), "does not end in a whole line") {
			t.Fatalf("files %q, %s", files, d.journal)
		}
		var m *Mistake
		if _, err := Verify(files, nil, func(FileReport) {}); err == nil || !asMistake(err, &m) || m.File != files[0] {
			t.Errorf("verify: %v", err)
		}
		if _, err := Verify(files[1:], nil, func(FileReport) {}); err != nil {
			t.Error(err)
		}
	}
}

func asMistake(err error, m **Mistake) (ok bool) {
	*m, ok = err.(*Mistake)
	return ok
}

// Guards against a log that cannot be opened after a kill in its first line.
func TestKilledInTheFirstLine(t *testing.T) {
	d := newDesk(t).open()
	d.close()
	first := d.read(d.file)
	for size := 0; size < len(first); size += 7 {
		d.write(d.file, first[:size])
		d.open()
		d.commit(0, 1)
		d.close()
		if notes := d.verified(); len(notes) != 0 || len(d.files()) != 1 {
			t.Fatalf("%d bytes: %q %q", size, notes, d.files())
		}
	}
}

const childFile = "AUDIT_TEST_FILE"

// child commits events from many goroutines and prints those that are committed,
// until it is killed.
func child() {
	rotate := int64(64 << 10)
	if os.Getenv("AUDIT_TEST_SMALL") != "" {
		rotate = 4 << 10
	}
	l, err := Open(Options{File: os.Getenv(childFile), RotateSize: rotate, Keep: 10_000, Log: slog.New(slog.DiscardHandler),
		SyncAlways: os.Getenv("AUDIT_TEST_SYNC") != ""})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var running sync.WaitGroup
	for worker := range 8 {
		running.Go(func() {
			for i := worker; ; i += 8 {
				e := numbered(i)
				if err := l.Commit(e); err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				os.Stdout.WriteString(e.Drv + "\n")
			}
		})
	}
	running.Wait()
}

// Guards against an answer that is not in the log when the process is killed behind
// it, and against a chain that does not go on afterwards.
func TestKillLosesNothingThatWasCommitted(t *testing.T) {
	for round := range 4 {
		d := newDesk(t)
		for range 2 { // on the same files
			acked := killChild(t, d.file, childOptions{always: round%2 == 1, after: 20 + 37*round})
			d.verified()
			written := map[string]int{}
			for _, drv := range d.drvs() {
				written[drv]++
			}
			for _, drv := range acked {
				if written[drv] == 0 {
					t.Fatalf("%s was committed and is not there", drv)
				}
			}
		}
		d.open().close()
		d.verified()
	}
}

// Guards against a process that takes over, or is killed while another does, in the
// middle of a rotation, and leaves files of which the chain is broken or events lost.
func TestKillsWhileOneProcessTakesOverFromAnother(t *testing.T) {
	for round := range 5 {
		d := newDesk(t)
		var mu sync.Mutex // guards acked
		var acked []string
		var running sync.WaitGroup
		for i := range 4 { // each takes over from the one before, if that still lives
			begun := make(chan struct{})
			begin := sync.OnceFunc(func() { close(begun) })
			running.Go(func() {
				defer begin()
				drvs := killChild(t, d.file, childOptions{small: true, after: 150 + 61*((i+round)%4), begun: begin})
				mu.Lock()
				defer mu.Unlock()
				acked = append(acked, drvs...)
			})
			<-begun
		}
		running.Wait()
		written := map[string]int{}
		for _, drv := range d.drvs() {
			written[drv]++
		}
		for _, drv := range acked {
			if written[drv]--; written[drv] < 0 {
				t.Fatalf("round %d: %s was committed once more than it is there\n", round, drv)
			}
		}
		d.verified()
		d.open().close()
		d.verified()
	}
}

type childOptions struct {
	always, small bool
	after         int    // as many events
	begun         func() // is called after some; may be nil
}

// killChild kills a child after so many events and returns all that it had committed.
func killChild(t *testing.T, file string, opts childOptions) (acked []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^$")
	cmd.Env = append(os.Environ(), childFile+"="+file)
	if opts.always {
		cmd.Env = append(cmd.Env, "AUDIT_TEST_SYNC=1")
	}
	if opts.small {
		cmd.Env = append(cmd.Env, "AUDIT_TEST_SMALL=1")
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(line, "/nix/store/") {
			t.Fatalf("the child says %q", line)
		}
		switch acked = append(acked, strings.TrimSpace(line)); len(acked) {
		case opts.after:
			cmd.Process.Kill()
		case 40:
			if opts.begun != nil {
				opts.begun()
			}
		}
	}
	return slices.Compact(acked)
}

// Guards against two processes that write into one chain while the new one takes
// over from the old one, as at an upgrade.
func TestANewProcessTakesOver(t *testing.T) {
	old := newDesk(t).open(small)
	old.commit(0, 3)
	next := &desk{TB: t, file: old.file, journal: &journal{}}
	next.open(small)
	for i := range 20 { // both go on; the old one past where it would rotate
		old.commit(100+i, 101+i)
		next.commit(200+i, 201+i)
	}
	old.close()
	next.close()
	next.verified()
	if n := len(next.drvs()); n != 43 {
		t.Errorf("%d events\n%s", n, next.text())
	}
	for _, e := range next.events(Begin)[1:] {
		if e.After == "" {
			t.Errorf("a file that does not say what it goes on from: %+v", e)
		}
	}
}

// Guards against events that go into a file which has no name any more.
func TestARemovedFileIsBegunAnew(t *testing.T) {
	d := newDesk(t)
	now := time.Now()
	var mu sync.Mutex
	d.open(func(o *Options) {
		o.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	d.commit(0, 2)
	if err := os.Remove(d.file); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	now = now.Add(2 * lookEvery)
	mu.Unlock()
	d.commit(2, 4)
	d.close()
	if n := len(d.drvs()); n != 2 || !strings.Contains(d.journal.String(), "moved away or removed") {
		t.Errorf("%d events\n%s", n, d.journal)
	}
	if e := d.events(Begin)[0]; e.Reason != reasonGone {
		t.Errorf("%+v", e)
	}
}

// Guards against a name that leads into somebody else's file, and against a file
// that others may read.
func TestOnlyAFileOfOurOwnIsWritten(t *testing.T) {
	d := newDesk(t).open()
	d.close()
	if err := os.Chmod(d.file, 0o644); err != nil {
		t.Fatal(err)
	}
	d.open().close()
	if info, _ := os.Stat(d.file); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	link := d.file + ".link"
	if err := os.Symlink(d.file, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{link, "/dev/null", t.TempDir()} {
		if l, err := Open(Options{File: name, Log: slog.New(slog.DiscardHandler)}); err == nil {
			l.Close()
			t.Errorf("%s was opened", name)
		}
	}
}
