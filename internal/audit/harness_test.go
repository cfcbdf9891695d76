package audit

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(childFile) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// journal is what the program logs.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// desk is a log in a directory of a test.
type desk struct {
	testing.TB
	*Log
	file    string
	journal *journal
}

func newDesk(t testing.TB) *desk {
	return &desk{TB: t, file: filepath.Join(t.TempDir(), "audit", "audit.jsonl"), journal: &journal{}}
}

// open opens the log until the end of the test, or close.
func (d *desk) open(change ...func(*Options)) *desk {
	d.Helper()
	opts := Options{File: d.file, Keep: 100, Version: "test", Log: slog.New(slog.NewJSONHandler(d.journal, nil))}
	for _, c := range change {
		c(&opts)
	}
	l, err := Open(opts)
	if err != nil {
		d.Fatal(err)
	}
	d.Log = l
	d.Cleanup(func() { l.Close() })
	return d
}

// commit writes events that differ by a number.
func (d *desk) commit(from, to int) {
	d.Helper()
	for i := from; i < to; i++ {
		if err := d.Commit(numbered(i)); err != nil {
			d.Fatal(err)
		}
	}
}

func numbered(i int) Event {
	return Event{Kind: Build, Principal: "anna", Drv: fmt.Sprintf("/nix/store/%032d-thing.drv", i), Builder: "builder1", Result: "Built"}
}

func (d *desk) close() {
	d.Helper()
	if err := d.Close(); err != nil {
		d.Fatal(err)
	}
}

// files are those of the log.
func (d *desk) files() []string {
	d.Helper()
	all, err := Files(d.file)
	if err != nil {
		d.Fatal(err)
	}
	return all
}

// verified wants the log whole and returns its notes.
func (d *desk) verified() (notes []string) {
	d.Helper()
	if _, err := Verify(d.files(), nil, func(r FileReport) { notes = append(notes, r.Notes...) }); err != nil {
		d.Fatalf("%v\n%s", err, d.text())
	}
	return notes
}

// wantMistake wants Verify to name a line of a file.
func (d *desk) wantMistake(files []string, file string, line int) {
	d.Helper()
	var m *Mistake
	_, err := Verify(files, nil, func(FileReport) {})
	if !errors.As(err, &m) || m.File != file || m.Line != line {
		d.Errorf("got %v, want %s:%d named", err, file, line)
	}
}

// drvs are the numbers of what commit has written.
func (d *desk) drvs() (all []string) {
	d.Helper()
	for _, e := range d.events(Build) {
		all = append(all, e.Drv)
	}
	return all
}

func (d *desk) events(kinds ...Kind) (all []Event) {
	d.Helper()
	for _, file := range d.files() {
		if _, err := Scan(file, &Filter{Kinds: kinds}, func(e *Event, _ []byte) error {
			all = append(all, *e)
			return nil
		}); err != nil {
			d.Fatal(err)
		}
	}
	return all
}

// text is all of the files.
func (d *desk) text() string {
	var all strings.Builder
	for _, file := range d.files() {
		fmt.Fprintf(&all, "%s:\n%s", file, d.read(file))
	}
	return all.String()
}

func (d *desk) read(file string) string {
	d.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		d.Fatal(err)
	}
	return string(text)
}

func (d *desk) write(file, text string) {
	d.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		d.Fatal(err)
	}
}

// eventually waits for what the writer does by itself.
func (d *desk) eventually(what string, is func() bool) {
	d.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			d.Fatalf("it does not come to be that %s\n%s", what, d.journal)
		}
	}
}
