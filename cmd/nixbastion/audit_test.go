package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixbastion/internal/audit"
)

// writtenAudit is a log with some events, over several files.
func writtenAudit(t *testing.T) (config string, files []string) {
	t.Helper()
	noLeaks(t)
	config = writePolicy(t, "state_dir: state\n")
	file := filepath.Join(filepath.Dir(config), "state/audit/audit.jsonl")
	l, err := audit.Open(audit.Options{File: file, RotateSize: 64 << 10, Keep: 10, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	day := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	for i := range 300 {
		name := fmt.Sprintf("/nix/store/%032d-thing", i)
		l.Record(audit.Event{Kind: audit.Upload, Time: day.Add(time.Duration(i) * time.Hour), Principal: "otto", Path: name + "-source", Size: 1})
		if err := l.Commit(audit.Event{
			Kind: audit.Build, Time: day.Add(time.Duration(i) * time.Hour), Principal: "anna", Builder: fmt.Sprint("b", i%3), Drv: name + ".drv",
			Outputs: []audit.Output{{Name: "out", Path: name}}, Result: "Built", Reason: "\x1b[2J\n",
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if files, err = audit.Files(file); err != nil || len(files) < 3 {
		t.Fatalf("files %q, %v", files, err)
	}
	return config, files
}

func command(args ...string) (status int, out, errs string) {
	var stdout, stderr bytes.Buffer
	status = run(args, &stdout, &stderr)
	return status, stdout.String(), stderr.String()
}

// Guards against a verification that says nothing, finds nothing, or looks elsewhere.
func TestAuditVerifyNamesTheFirstWrongLine(t *testing.T) {
	config, files := writtenAudit(t)
	status, out, errs := command("audit", "verify", "--config", config)
	if status != 0 || strings.Count(out, "lines are whole, head ") != len(files) {
		t.Fatalf("status %d, %s%s", status, out, errs)
	}
	head := strings.TrimSpace(out[strings.LastIndex(out, "head ")+5:])
	others := append([]string{"audit", "verify", "--head", head, files[1], files[0]}, files[2:len(files)-1]...) // in any order
	if status, _, errs := command(others...); status != 1 || !strings.Contains(errs, "no line has the hash "+head) {
		t.Errorf("without the last file: status %d, %s", status, errs)
	}
	if status, _, errs := command("audit", "verify", "--config", config, "--head", head); status != 0 {
		t.Errorf("the head is not there: %s", errs)
	}
	if status, _, errs := command("audit", "verify", "--config", config, "--head", strings.Repeat("0", 64)); status != 1 || !strings.Contains(errs, "no line has the hash") {
		t.Errorf("a head of nothing: %d %s", status, errs)
	}
	text, err := os.ReadFile(files[1])
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	lines[6] = strings.Replace(lines[6], "2026", "2025", 1)
	if err := os.WriteFile(files[1], []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, errs = command("audit", "verify", "--config", config)
	if want := files[1] + ":7: it is not as it was written"; status != 1 || !strings.Contains(errs, want) || !strings.Contains(out, files[0]+": ") {
		t.Errorf("status %d, %s%s, want %s", status, out, errs, want)
	}
}

// Guards against a search that leaves out what is asked for, shows more, or prints
// what a terminal obeys.
func TestAuditGrepFilters(t *testing.T) {
	config, _ := writtenAudit(t)
	for _, c := range []struct {
		args string
		want int
	}{
		{"", 600}, // and the first lines of files
		{"--event build", 300},
		{"--event build,upload", 600},
		{"--event build --event login", 300},
		{"--principal otto", 300},
		{"--principal ott", 0},
		{"--builder b1", 100},
		{"--drv 42-thing.drv", 3},
		{"--path 42-thing", 6},
		{"--path 00000000000000000000000000000142-thing --event build", 1},
		{"--since 2026-12-01T12:00:00Z --event build", 276},
		{"--since 2026-12-01T12:00:00Z --until 2026-12-01T14:00:00Z --event build", 2},
		{"--address 192.0.2.1", 0},
	} {
		args := append([]string{"audit", "grep", "--config", config}, strings.Fields(c.args)...)
		status, out, errs := command(args...)
		lines := strings.Count(out, "\n") - strings.Count(out, " begin ")
		if status != 0 || lines != c.want {
			t.Errorf("%s: status %d, %d lines, want %d; %s", c.args, status, lines, c.want, errs)
		}
		if strings.ContainsAny(out, "\x1b") {
			t.Errorf("%s: control characters", c.args)
		}
		_, out, _ = command(append(args, "--json")...)
		for line := range strings.Lines(out) {
			if !json.Valid([]byte(line)) {
				t.Fatalf("%s: no JSON: %q", c.args, line)
			}
		}
	}
	_, out, _ := command("audit", "grep", "--config", config, "--drv", "00000000000000000000000000000007-")
	if want := "build          principal=anna drv=/nix/store/00000000000000000000000000000007-thing.drv builder=b1 outputs.out=/nix/store/00000000000000000000000000000007-thing result=Built"; !strings.Contains(out, want) {
		t.Errorf("for people: %q", out)
	}
}

// Guards against mistakes that look like an empty log.
func TestAuditTellsWhatItCannotFind(t *testing.T) {
	nothing, off := writePolicy(t, "state_dir: state\n"), writePolicy(t, "state_dir: state\naudit: off\n")
	for _, c := range []struct {
		status int
		args   []string
	}{
		{exitFailure, []string{"verify", "--config", nothing}},
		{exitFailure, []string{"grep", "--config", nothing}},
		{exitFailure, []string{"verify", "--config", off}},
		{exitFailure, []string{"verify", "/nothing/there"}},
		{exitMistakes, []string{"grep", "--event", "logon", nothing}},
		{exitMistakes, []string{"grep", "--since", "yesterday", nothing}},
		{exitMistakes, []string{"verify", "--head", "abc", nothing}},
	} {
		if status, out, _ := command(append([]string{"audit"}, c.args...)...); status != c.status || out != "" {
			t.Errorf("%q: status %d, %q", c.args, status, out)
		}
	}
}

// Guards against a file that becomes full while the log is read: it is neither taken
// for a break in the chain, nor left out, nor read twice.
func TestAuditIsReadWhileItRotates(t *testing.T) {
	config, files := writtenAudit(t)
	current := files[len(files)-1]
	rotate := func(stamp string) {
		t.Helper()
		if err := errors.Join(os.Rename(current, current+"."+stamp), os.WriteFile(current, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	reads := 0
	err := auditFiles{Config: config}.whole(func(now []string) error {
		reads++
		if reads == 1 {
			rotate("2099-01-01T00-00-00.000Z")
			return errors.New("it does not go on")
		}
		if len(now) != len(files)+1 {
			t.Errorf("read again: %q", now)
		}
		return nil
	})
	if err != nil || reads != 2 {
		t.Errorf("%d reads, %v", reads, err)
	}
	var seen []string
	err = auditFiles{Config: config}.each(func(file string) error {
		if len(seen) == 0 {
			rotate("2099-01-02T00-00-00.000Z")
		}
		seen = append(seen, filepath.Base(file))
		return nil
	})
	all, _ := audit.Files(current)
	if err != nil || len(seen) != len(files)+2 || len(all) != len(seen) || seen[len(seen)-1] != "audit.jsonl" || seen[len(seen)-2] != "audit.jsonl.2099-01-02T00-00-00.000Z" {
		t.Errorf("seen %q, %v", seen, err)
	}
	seen = nil
	if err := (auditFiles{Config: config}).each(func(file string) error {
		if filepath.Base(file) == "audit.jsonl" && len(seen) < 50 {
			rotate("2099-01-03T00-00-00.000Z") // what was just read has another name now
		}
		seen = append(seen, file)
		return nil
	}); err != nil || len(seen) != len(all) {
		t.Errorf("seen %q, %v", seen, err)
	}
}

func TestTimesOfAudit(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.Local)
	for text, want := range map[string]time.Time{
		"":                     {},
		"90m":                  now.Add(-90 * time.Minute),
		"7d":                   now.AddDate(0, 0, -7),
		"2026-11-30":           time.Date(2026, 11, 30, 0, 0, 0, 0, time.Local),
		"2026-11-30 18:45":     time.Date(2026, 11, 30, 18, 45, 0, 0, time.Local),
		"2026-11-30T18:45:13Z": time.Date(2026, 11, 30, 18, 45, 13, 0, time.UTC),
	} {
		if got, err := parseTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// recorder is an Auditor that keeps events.
type recorder struct{ events []audit.Event }

func (r *recorder) Record(e audit.Event)       { r.events = append(r.events, e) }
func (r *recorder) Commit(e audit.Event) error { r.Record(e); return nil }
func (r *recorder) Fault() error               { return nil }
func (r *recorder) Trouble() *audit.Fault      { return nil }

// Guards against commands that change something and leave no trace of who gave them.
func TestCommandsOfTheAdminAreKept(t *testing.T) {
	o, _ := openStoreOffice(t)
	book := &recorder{}
	o.admin.audit = book
	o.admin.change = func(_ context.Context, _ string, words []string) (string, error) {
		if words[1] == "b2" {
			return "", fmt.Errorf("builder 'b2' is not there")
		}
		return "done\n", nil
	}
	command("drain", "b1", "--reason", "new disk", "--socket", o.socket)
	command("undrain", "b2", "--socket", o.socket)
	command("cache", "gc", "--socket", o.socket)
	command("cache", "ls", "--socket", o.socket)
	command("status", "--socket", o.socket)
	var got []string
	for _, e := range book.events {
		got = append(got, fmt.Sprintf("%s %s %s: %s %s", e.Kind, e.UID, e.Command, e.Result, e.Reason))
	}
	uid := os.Getuid()
	want := fmt.Sprintf("[admin %[1]d drain b1 new disk: done  admin %[1]d undrain b2: failed builder 'b2' is not there admin %[1]d cache gc --domain default: done ]", uid)
	if fmt.Sprint(got) != want {
		t.Errorf("got  %q\nwant %q", fmt.Sprint(got), want)
	}
}

// Guards against a command on the store that took in what nothing proves, and looks in
// the log like one that did not.
func TestCommandsOnTheStoreAreKeptWithTheirOptions(t *testing.T) {
	size := int64(1 << 30)
	for want, q := range map[string]cacheRequest{
		"cache import --domain default --vouch":                {Do: "import", Domain: "default", Vouch: true},
		"cache rm --domain default --referrers /nix/store/a":   {Do: "rm", Domain: "default", Referrers: true, Paths: []string{"/nix/store/a"}},
		"cache gc --domain default --size 1073741824":          {Do: "gc", Domain: "default", Size: &size},
		"cache pin --domain default /nix/store/a /nix/store/b": {Do: "pin", Domain: "default", Paths: []string{"/nix/store/a", "/nix/store/b"}},
	} {
		if got := strings.Join(q.words(), " "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
