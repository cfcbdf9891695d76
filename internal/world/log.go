package world

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Line is one line of the proxy's log.
type Line struct {
	// Raw is the line as written; all else is empty if it is no JSON.
	Raw    string
	Time   time.Time
	Level  string
	Msg    string
	Fields map[string]any
}

// Text returns a field as text, "" if it is not there.
func (l Line) Text(field string) string {
	value, ok := l.Fields[field]
	if !ok {
		return ""
	}
	return fmt.Sprint(value)
}

func parseLine(raw string) Line {
	l := Line{Raw: raw}
	if json.Unmarshal([]byte(raw), &l.Fields) != nil {
		return l
	}
	l.Level, l.Msg = l.Text("level"), l.Text("msg")
	l.Time, _ = time.Parse(time.RFC3339Nano, l.Text("time"))
	return l
}

// A journal is where the proxy's standard error goes. It outlives restarts.
type journal struct {
	mu    sync.Mutex // guards what follows
	part  []byte     // of a line that is not complete
	lines []Line
	more  chan struct{} // closed and replaced when a line comes
}

func newJournal() *journal { return &journal{more: make(chan struct{})} }

// Write takes lines apart; it is called by one process at a time.
func (j *journal) Write(text []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.part = append(j.part, text...)
	for {
		line, rest, whole := bytes.Cut(j.part, []byte{'\n'})
		if !whole {
			return len(text), nil
		}
		j.lines = append(j.lines, parseLine(string(line)))
		j.part = bytes.Clone(rest)
		close(j.more)
		j.more = make(chan struct{})
	}
}

func (j *journal) since(mark int) (lines []Line, more <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines[min(mark, len(j.lines)):]), j.more
}

// Mark is where the log ends now, for WaitLine and LinesSince.
func (p *Proxy) Mark() int {
	lines, _ := p.log.since(0)
	return len(lines)
}

// LinesSince returns the log from a Mark on; 0 is all of it, earlier runs of the
// same Proxy included.
func (p *Proxy) LinesSince(mark int) []Line {
	lines, _ := p.log.since(mark)
	return lines
}

// LogText is the whole log, for a person.
func (p *Proxy) LogText() string {
	var text strings.Builder
	for _, l := range p.LinesSince(0) {
		text.WriteString(l.Raw + "\n")
	}
	return text.String()
}

// WaitLine returns the first line from mark on that match accepts, and waits
// for it until ctx ends or the proxy does.
func (p *Proxy) WaitLine(ctx context.Context, mark int, match func(Line) bool) (Line, error) {
	for {
		// Asked first: what the proxy wrote before its end is all there then.
		ended := p.hasEnded()
		lines, more := p.log.since(mark)
		if i := slices.IndexFunc(lines, match); i >= 0 {
			return lines[i], nil
		}
		if ended {
			return Line{}, fmt.Errorf("the proxy ended and the log has no such line:\n%s", tail(lines))
		}
		select {
		case <-ctx.Done():
			return Line{}, fmt.Errorf("the log has no such line: %w\n%s", context.Cause(ctx), tail(lines))
		case <-p.ending():
		case <-more:
		}
	}
}

// Message matches lines by their message and, if any are given, by fields: pairs
// of a name and a text that the field has.
func Message(msg string, fields ...string) func(Line) bool {
	return func(l Line) bool {
		if l.Msg != msg {
			return false
		}
		for i := 0; i+1 < len(fields); i += 2 {
			if !strings.Contains(l.Text(fields[i]), fields[i+1]) {
				return false
			}
		}
		return true
	}
}

// tail is the end of a log for an error.
func tail(lines []Line) string {
	const shown = 30
	var text strings.Builder
	for _, l := range lines[max(0, len(lines)-shown):] {
		text.WriteString(l.Raw + "\n")
	}
	return text.String()
}
