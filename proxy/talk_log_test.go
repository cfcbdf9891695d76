package proxy

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"nixbastion/internal/nix"
)

// underWayWith is a build that nobody runs, with a log in a directory.
func underWayWith(dir string) *ledgerEntry {
	return &ledgerEntry{ledger: &ledger{inflight: newInflight()}, build: &build{askers: newAskers()}, log: newBuildLog(dir, 0)}
}

func (e *ledgerEntry) text(t *testing.T, follow bool) string {
	t.Helper()
	var text strings.Builder
	if err := (&logLines{out: bufio.NewWriter(&text), to: &text}).live(t.Context(), e, follow); err != nil {
		t.Error(err)
	}
	return text.String()
}

// Guards against a look at a log that has no line yet which lasts as long as the build.
func TestALookAtAnEmptyLogEnds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		if got := underWayWith(dir).text(t, false); got != "" {
			t.Errorf("it has %q", got)
		}
	})
}

// Guards against a log that looks whole, and is not, since the disk was full.
func TestALogThatCouldNotBeWrittenSaysSo(t *testing.T) {
	e := underWayWith(filepath.Join(t.TempDir(), "gone"))
	nix.Line(e.log, strings.Repeat("x", 2*logTailSize))
	e.log.finish()
	if got := e.text(t, true); !strings.HasSuffix(got, cutShort+"\n") {
		t.Errorf("it ends with %q", got[max(0, len(got)-100):])
	}
	files := &recordFiles{dir: t.TempDir()}
	if err := files.write(&buildRecord{ID: "aaaaaa", Result: "built"}, e.log); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(files.path("aaaaaa", ".log")); err != nil || !strings.Contains(string(got), cutShort+"\nnixbastion: built after") {
		t.Errorf("kept is %q, %v", got[max(0, len(got)-100):], err)
	}
}

// Guards against a build that is said to run since it ended between two looks.
func TestLogOfABuildThatHasJustEndedSaysSo(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	b.build = held(release)
	l := newLab(t, b)
	end := l.begin("alice", "hello")
	before := l.underWay("hello", isRunning)
	close(release)
	<-end
	l.ended("hello")
	var text strings.Builder
	if err := l.proxy.logOf(t.Context(), &asker{}, &text, &before, &question{json: true}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(text.String()), "\n")
	var last logObject
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Build == nil || last.Build.Result != "built" {
		t.Errorf("it ends with %s, %v", lines[len(lines)-1], err)
	}
}

// Guards against letters that are lost where a long line is read in pieces.
func TestLongLinesOfAKeptLogAreWhole(t *testing.T) {
	files := &recordFiles{dir: t.TempDir()}
	want := "x" + strings.Repeat("äöü€😀", 20_000)
	if err := os.WriteFile(files.path("aaaaaa", ".log"), []byte(want+"\nend\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := (&logLines{out: bufio.NewWriter(&text), to: &text}).kept(&ledger{files: *files}, &buildRecord{ID: "aaaaaa"}); err != nil {
		t.Fatal(err)
	}
	if text.String() != want+"\nend\n" {
		t.Errorf("it has %d bytes, %d question marks", text.Len(), strings.Count(text.String(), "?"))
	}
}

// Guards against what a builder said that does something to the terminal of an admin
// who reads a log as JSON.
func TestLogAsJSONOnlyPrints(t *testing.T) {
	files := &recordFiles{dir: t.TempDir()}
	if err := os.WriteFile(files.path("aaaaaa", ".log"), []byte("c1 \u009b31m \u202e\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	r := &buildRecord{ID: "aaaaaa", Attempts: []attemptRecord{{Builder: "b1", Reason: "c1 \u009b31m \u202e\x1b[2J"}}}
	if err := (&logLines{out: bufio.NewWriter(&text), to: io.Discard, json: true}).kept(&ledger{files: *files}, r); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(text.String(), "\u009b\u202e\x1b") || strings.Count(text.String(), "\n") != 2 {
		t.Errorf("it is %q", text.String())
	}
}
