package audit

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// disk is one that fills, and whose syncs fail.
type disk struct {
	mu     sync.Mutex // guards what follows
	full   bool
	part   int // of a write gets through when it is full
	broken bool
	syncs  atomic.Int64
	stuck  chan struct{} // syncs wait for its end; nil for none
	// failSync is the number of one sync that fails; 0 is none.
	failSync atomic.Int64
}

type diskFile struct {
	*os.File
	disk *disk
}

func (d *disk) options(o *Options) {
	o.wrap = func(f *os.File) appender { return &diskFile{f, d} }
	o.pause = 20 * time.Millisecond
}

func (d *disk) set(full, broken bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full, d.broken = full, broken
}

func (f *diskFile) Write(b []byte) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if !f.disk.full {
		return f.File.Write(b)
	}
	n, _ := f.File.Write(b[:min(len(b), f.disk.part)])
	return n, syscall.ENOSPC
}

func (f *diskFile) Sync() error {
	n := f.disk.syncs.Add(1)
	if f.disk.stuck != nil {
		<-f.disk.stuck
	}
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.broken || n == f.disk.failSync.Load() {
		return syscall.EIO
	}
	return f.File.Sync()
}

// Guards against builds that nobody can prove, against an event that is lost or
// written twice when there is room again, and against a torn line in the middle.
func TestAFullDiskRefusesUntilThereIsRoom(t *testing.T) {
	for _, part := range []int{0, 50} {
		dsk := &disk{part: part}
		d := newDesk(t).open(dsk.options)
		d.commit(0, 2)
		dsk.set(true, false)
		var fault *Fault
		for i := range 3 {
			if err := d.Commit(numbered(2 + i)); !errors.As(err, &fault) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("commit on a full disk: %v", err)
			}
		}
		if !errors.Is(d.Fault(), syscall.ENOSPC) {
			t.Errorf("fault: %v", d.Fault())
		}
		dsk.set(false, false)
		d.eventually("it is written again", func() bool { return d.Fault() == nil })
		d.commit(5, 6)
		d.close()
		if notes := d.verified(); len(notes) != 0 {
			t.Errorf("notes %q", notes)
		}
		if drvs := d.drvs(); len(drvs) != 6 || !slices.IsSorted(drvs) {
			t.Errorf("events %q", drvs)
		}
		if text := d.journal.String(); strings.Count(text, "cannot be written") != 1 || !strings.Contains(text, "written again") {
			t.Errorf("journal: %s", text)
		}
	}
}

// Guards against memory that grows while nothing can be written, and against events
// that vanish without a word.
func TestWhatDoesNotFitIntoMemoryIsCounted(t *testing.T) {
	dsk := &disk{}
	d := newDesk(t).open(dsk.options, func(o *Options) { o.Continue, o.pause = true, 0 })
	dsk.set(true, false)
	const events = 100
	for i := range events {
		e := numbered(i)
		e.Outputs = slices.Repeat([]Output{{Path: strings.Repeat("x", maxPath)}}, maxList)
		if err := d.Commit(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Fault(); err != nil {
		t.Errorf("builds are to go on: %v", err)
	}
	d.mu.Lock()
	queued := d.queued
	d.mu.Unlock()
	if queued < maxQueue || queued > 2*maxQueue {
		t.Errorf("%d bytes are queued", queued)
	}
	dsk.set(false, false)
	d.eventually("it is written again", func() bool { return d.fault.Load() == nil })
	d.close()
	d.verified()
	dropped := d.events(Dropped)
	if len(dropped) != 1 || dropped[0].Count+uint64(len(d.drvs())) != events || dropped[0].Count == 0 {
		t.Errorf("%d events and %+v", len(d.drvs()), dropped)
	}
}

// Guards against sync: always that does not wait, and against one sync for each.
func TestAlwaysMeansOnDiskAndTogether(t *testing.T) {
	dsk := &disk{}
	d := newDesk(t).open(dsk.options, func(o *Options) { o.SyncAlways, o.pause = true, time.Hour })
	d.commit(0, 1)
	if n := dsk.syncs.Load(); n != 1 {
		t.Fatalf("%d syncs for the first event", n)
	}
	dsk.stuck = make(chan struct{})
	const events = 50
	var running sync.WaitGroup
	var answered atomic.Int64
	commit := func(i int) {
		running.Go(func() {
			if err := d.Commit(numbered(i)); err != nil {
				t.Error(err)
			}
			answered.Add(1)
		})
	}
	commit(1)
	d.eventually("a sync is on its way", func() bool { return dsk.syncs.Load() == 2 })
	for i := range events {
		commit(2 + i)
	}
	d.eventually("all others wait", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.queue) == events })
	if n := answered.Load(); n != 0 {
		t.Errorf("%d were answered before the sync", n)
	}
	close(dsk.stuck)
	running.Wait()
	if n := dsk.syncs.Load(); n != 3 {
		t.Errorf("%d syncs for three batches", n)
	}
}

// Guards against commits that wait for the sync of every second.
func TestNobodyWaitsForTheSyncOfEverySecond(t *testing.T) {
	dsk := &disk{stuck: make(chan struct{})}
	d := newDesk(t).open(dsk.options)
	d.commit(0, 1)
	d.eventually("a sync is on its way", func() bool { return dsk.syncs.Load() == 1 })
	d.commit(1, 100)
	close(dsk.stuck)
	d.close()
	d.verified()
}

// Guards against a file that is trusted although the disk has said that it may have
// lost what was in it, and against one new file each second.
func TestAFileWhoseSyncFailedIsPutAside(t *testing.T) {
	for _, always := range []bool{false, true} {
		dsk := &disk{}
		d := newDesk(t).open(dsk.options, func(o *Options) { o.SyncAlways = always })
		d.commit(0, 9)
		dsk.set(false, true)
		err := d.Commit(numbered(9))
		if always && !errors.Is(err, syscall.EIO) {
			t.Errorf("commit without a sync: %v", err)
		}
		d.eventually("builds are refused", func() bool { return errors.Is(d.Fault(), syscall.EIO) })
		d.eventually("another file is tried", func() bool { return len(d.files()) == 2 })
		n := dsk.syncs.Load()
		d.eventually("it is tried again", func() bool { return dsk.syncs.Load() > n+1 })
		dsk.set(false, false)
		d.eventually("it is written again", func() bool { return d.Fault() == nil })
		d.commit(10, 11)
		d.close()
		if files := d.files(); len(files) != 2 {
			t.Errorf("files %q", files)
		}
		if n := len(d.drvs()); n != 11 {
			t.Errorf("%d events\n%s", n, d.text())
		}
		d.verified()
	}
}

// Guards against a proxy that does not start since its disk is full.
func TestAFullDiskAtTheStartIsAFaultLikeLater(t *testing.T) {
	dsk := &disk{full: true}
	d := newDesk(t).open(dsk.options)
	if !errors.Is(d.Fault(), syscall.ENOSPC) {
		t.Errorf("fault: %v", d.Fault())
	}
	d.Record(numbered(0))
	dsk.set(false, false)
	d.eventually("it is written again", func() bool { return d.Fault() == nil })
	d.close()
	d.verified()
	if n := len(d.drvs()); n != 1 {
		t.Errorf("%d events", n)
	}
}

// Guards against a call after the end that waits for ever.
func TestAfterTheEndNothingIsCommitted(t *testing.T) {
	d := newDesk(t).open()
	d.close()
	d.Record(numbered(0))
	if err := d.Commit(numbered(0)); !errors.Is(err, ErrClosed) {
		t.Errorf("commit: %v", err)
	}
	d.close()
}

// benchmarkEvent is the end of a usual build.
func benchmarkEvent() Event {
	return Event{
		Kind: Build, Principal: "anna", Domain: "default", Address: "192.0.2.17", Port: 50222,
		Key: "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Drv: "/nix/store/00000000000000000000000000000000-hello-2.12.1.drv",
		System: "x86_64-linux", Builder: "builder1", Attempts: 1, Inputs: 317, InputBytes: 1 << 30, Seconds: 12.5, Result: "Built",
		Outputs: []Output{{"out", "/nix/store/00000000000000000000000000000000-hello-2.12.1", "sha256:0000000000000000000000000000000000000000000000000000", 226560}},
	}
}

func benchmark(b *testing.B, each func(*Log, Event), change ...func(*Options)) {
	d := newDesk(b).open(append(change, func(o *Options) { o.RotateSize, o.Keep = 64<<20, 2 })...)
	e := benchmarkEvent()
	b.ReportAllocs()
	for b.Loop() {
		each(d.Log, e)
	}
}

// What an event costs whoever does not wait for it, with all of the writer's work in
// the background.
func BenchmarkRecord(b *testing.B) { benchmark(b, func(l *Log, e Event) { l.Record(e) }) }

// What a build waits for its line.
func BenchmarkCommit(b *testing.B) { benchmark(b, func(l *Log, e Event) { l.Commit(e) }) }

func BenchmarkCommitAlways(b *testing.B) {
	benchmark(b, func(l *Log, e Event) { l.Commit(e) }, func(o *Options) { o.SyncAlways = true })
}

// What an event costs in all but the write: encoding, hash, line.
func BenchmarkLine(b *testing.B) {
	e := benchmarkEvent()
	var line, body []byte
	var last link
	at := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		body = appendEvent(body[:0], &e)
		line, last = appendLine(line[:0], last, at, body)
	}
	b.SetBytes(int64(len(line)))
}

// Guards against a disk that is full and stops builds at the next line, and against
// space that is gone for good.
func TestAFileHasSpaceAheadWhileItIsOpen(t *testing.T) {
	d := newDesk(t).open(small)
	d.commit(0, 50)
	onDisk := func(file string) int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(file, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if n := onDisk(d.file); n < reserveAhead/2 {
		t.Errorf("%d bytes on disk", n)
	}
	if full := d.files()[0]; onDisk(full) > 64<<10 {
		t.Errorf("a full file keeps %d bytes on disk", onDisk(full))
	}
	d.close()
	if n := onDisk(d.file); n > 64<<10 {
		t.Errorf("%d bytes on disk after the end", n)
	}
}

// Guards against a build that waits for ever, on a disk that fails, for its line: it
// came to the queue just before the fault was known.
func TestACommitIsAnsweredWhateverFails(t *testing.T) {
	dsk := &disk{}
	var d *desk
	var late atomic.Bool
	answer := make(chan error, 1)
	d = newDesk(t).open(dsk.options, func(o *Options) {
		o.now = func() time.Time { // the writer asks between a failed sync and its notice
			if dsk.syncs.Load() > 0 && late.CompareAndSwap(true, false) {
				e := numbered(1)
				e.Time = time.Now()
				go func() { answer <- d.Commit(e) }()
				d.eventually("it is in the queue", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.queue) > 0 })
			}
			return time.Now()
		}
	})
	dsk.set(false, true)
	e := numbered(0)
	e.Time = time.Now()
	if err := d.Commit(e); err != nil {
		t.Fatal(err)
	}
	late.Store(true)
	select {
	case err := <-answer:
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("commit: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a build waits for a disk that fails")
	}
	dsk.set(false, false)
	d.eventually("it is written again", func() bool { return d.Fault() == nil })
	d.close()
	if n := len(d.drvs()); n != 2 {
		t.Errorf("%d events", n)
	}
}

// Guards against memory that grows with each write that fails: what comes while the
// writer tries is counted with what it tries.
func TestMemoryIsBoundedWhileWritesFailSlowly(t *testing.T) {
	dsk := &disk{}
	d := newDesk(t).open(dsk.options, func(o *Options) { o.Continue, o.pause = true, time.Hour })
	big := numbered(0)
	big.Outputs = slices.Repeat([]Output{{Path: strings.Repeat("x", maxPath)}}, maxList)
	fill := func() {
		for range 60 { // beyond the queue
			d.Record(big)
		}
	}
	dsk.set(true, false)
	d.Commit(big)
	for range 5 { // as the writer does, with a disk that takes its time
		fill()
		batch := d.take()
		fill()
		w := &writer{Log: d.Log, timer: time.NewTimer(time.Hour)}
		w.failed(syscall.ENOSPC, batch)
	}
	size := 0
	d.mu.Lock()
	for _, e := range d.queue {
		size += len(e.body) + entryCost
	}
	d.mu.Unlock()
	if size > 2*maxQueue {
		t.Errorf("%d bytes are queued, %d may be", size, maxQueue)
	}
	dsk.set(false, false)
	d.close()
	// And the last thing that is written is how much is missing.
	if dropped := d.events(Dropped); len(dropped) != 1 || int(dropped[0].Count)+len(d.drvs()) != 1+5*120 {
		t.Errorf("%d events and %+v", len(d.drvs()), dropped)
	}
}

// Guards against an answer for what a failed sync may have lost, when the file became
// full with it.
func TestAlwaysMeansOnDiskAlsoWhenAFileIsFull(t *testing.T) {
	dsk := &disk{}
	d := newDesk(t).open(small, dsk.options, func(o *Options) { o.SyncAlways, o.pause = true, time.Hour })
	dsk.stuck = make(chan struct{})
	var running sync.WaitGroup
	errs := make([]error, 41)
	commit := func(i int) { running.Go(func() { errs[i] = d.Commit(numbered(i)) }) }
	commit(0)
	d.eventually("a sync is on its way", func() bool { return dsk.syncs.Load() == 1 })
	for i := 1; i < len(errs); i++ {
		commit(i)
	}
	d.eventually("all others wait", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.queue) == len(errs)-1 })
	dsk.failSync.Store(2) // that of the file that becomes full
	close(dsk.stuck)
	running.Wait()
	written, answered := 0, 0
	for i, err := range errs {
		if err == nil && i > 0 {
			answered++
		}
	}
	for _, file := range d.files() {
		written += strings.Count(d.read(file), `"event":"build"`)
	}
	if answered > 0 {
		t.Errorf("%d of %d builds were answered, %d are written, and the disk has said that it lost some", answered, len(errs)-1, written)
	}
}

// Guards against space ahead that is not there any more once a write had failed.
func TestSpaceAheadIsReservedAgainAfterAFailedWrite(t *testing.T) {
	dsk := &disk{part: 50}
	d := newDesk(t).open(dsk.options)
	d.commit(0, 1)
	dsk.set(true, false)
	_ = d.Commit(numbered(1))
	dsk.set(false, false)
	d.eventually("it is written again", func() bool { return d.Fault() == nil })
	d.commit(2, 3)
	var st syscall.Stat_t
	if err := syscall.Stat(d.file, &st); err != nil || st.Blocks*512 < reserveAhead/2 {
		t.Errorf("%d bytes on disk, %v", st.Blocks*512, err)
	}
}
