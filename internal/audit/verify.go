package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// Mistake is a line that is not as it was written.
type Mistake struct {
	File string
	Line int // from 1
	Text string
}

func (m *Mistake) Error() string { return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Text) }

// FileReport is what Verify found in a file.
type FileReport struct {
	File string
	// Lines are whole, and Head is the hash of the last of them.
	Lines int
	Head  Hash
	// Notes are about what is odd and nobody's doing.
	Notes []string
}

// Verify reads files of one log, in order, and reports each to done when it is
// through. The error is a [*Mistake] for the first line that is wrong. Memory does
// not grow with their length. Heads that were printed before can be looked for: those
// that are no line's hash remain in missing.
func Verify(files []string, heads []Hash, done func(FileReport)) (missing []Hash, err error) {
	v := &verifier{missing: map[Hash]bool{}}
	for _, h := range heads {
		v.missing[h] = true
	}
	for _, file := range files {
		report, err := v.file(file)
		if err != nil {
			return nil, err
		}
		done(report)
		v.before = file
	}
	for _, h := range heads {
		if v.missing[h] {
			missing = append(missing, h)
		}
	}
	return missing, nil
}

type verifier struct {
	missing map[Hash]bool
	last    link
	before  string // the file read before, "" for none
	lines   *lineReader
	report  FileReport
}

func (v *verifier) file(name string) (FileReport, error) {
	lines, err := openLines(name)
	if err != nil {
		return FileReport{}, err
	}
	defer lines.close()
	v.lines, v.report = lines, FileReport{File: name}
	for first := true; ; first = false {
		switch err := lines.next(); {
		case errors.Is(err, io.EOF):
			if first {
				v.note("is empty: the proxy was killed when it began it")
			}
			return v.report, nil
		case err != nil:
			return FileReport{}, err
		}
		if err := v.line(first); err != nil {
			return FileReport{}, err
		}
	}
}

func (v *verifier) note(format string, args ...any) {
	v.report.Notes = append(v.report.Notes, fmt.Sprintf(format, args...))
}

func (v *verifier) wrong(line int, format string, args ...any) error {
	return &Mistake{v.lines.file.Name(), line, fmt.Sprintf(format, args...)}
}

// line looks at the line that was read.
func (v *verifier) line(first bool) error {
	l, ok := v.lines.link()
	switch {
	case !ok && first && !v.lines.whole:
		v.note("line 1 is not whole: the proxy is writing it, or was killed")
		return nil
	case !ok && first:
		return v.wrong(1, "this is not the first line of an audit log, or it was changed")
	case !ok:
		return v.torn()
	}
	var err error
	if first {
		err = v.firstLine(l)
	} else {
		err = v.follows(l)
	}
	v.took(l)
	return err
}

// took notes that a line is whole.
func (v *verifier) took(l link) {
	v.last = l
	v.report.Lines++
	v.report.Head = l.hash
	delete(v.missing, l.hash)
}

// firstLine looks how a file goes on from the one before.
func (v *verifier) firstLine(l link) error {
	var e Event
	if err := json.Unmarshal(v.lines.text, &e); err != nil || e.Kind != Begin {
		return v.wrong(1, "this is not the first line of an audit log; lines before it are missing")
	}
	switch {
	case v.before == "" && e.After != "":
		v.note("goes on from %s, which is not among the files", quoteText(e.After))
		return nil
	case v.before == "" && l.seq > 1:
		v.note("begins with line %d (%s); the lines before it are not among the files", l.seq, quoteText(e.Reason))
		return nil
	case v.before == "":
		return nil
	case l.prev == v.last.hash:
		if e.Reason == reasonFirst || e.Reason == reasonGone {
			v.note("was begun behind %s since %s: a file between them may have been removed", filepath.Base(v.before), quoteText(e.Reason))
		}
		return nil
	case e.Reason == reasonHandover:
		// Whoever wrote the file before went on with it for a while.
		if at, err := linkOf(v.before, l.prev); err != nil || at.seq+1 != l.seq {
			return v.wrong(1, "it does not go on from any line of %s", v.before)
		}
		return nil
	}
	return v.wrong(1, "it does not go on from the last line of %s: lines at its end, or files between them, are missing", filepath.Base(v.before))
}

// linkOf finds the line with a hash.
func linkOf(file string, h Hash) (link, error) {
	lines, err := openLines(file)
	if err != nil {
		return link{}, err
	}
	defer lines.close()
	for {
		if err := lines.next(); err != nil {
			return link{}, err
		}
		if l, ok := lines.link(); ok && l.hash == h {
			return l, nil
		}
	}
}

// follows looks whether a line that is whole is the next one.
func (v *verifier) follows(l link) error {
	switch next := v.last.seq + 1; {
	case l.prev == v.last.hash && l.seq == next:
		return nil
	case l.seq > next:
		return v.wrong(v.lines.n, "%d lines before it are missing, or stand elsewhere", l.seq-next)
	case l.seq < next:
		return v.wrong(v.lines.n, "it stands in the wrong place, or for the second time (its seq is %d, not %d)", l.seq, next)
	}
	return v.wrong(v.lines.n, "it does not go on from the line before, which is not the one that was written")
}

// torn looks whether a line that is not whole was ended by the start after a crash.
func (v *verifier) torn() error {
	n, size, sum, whole := v.lines.n, v.lines.size, v.lines.hash(), v.lines.whole
	if !whole {
		v.note("line %d is not whole: the proxy is writing it, or was killed; its next start ends the line", n)
		return nil
	}
	changed := v.wrong(n, "it is not as it was written")
	switch err := v.lines.next(); {
	case errors.Is(err, io.EOF):
		return changed
	case err != nil:
		return err
	}
	l, ok := v.lines.link()
	var e Event
	if !ok || json.Unmarshal(v.lines.text, &e) != nil || e.Kind != Recovered {
		return changed
	}
	if e.Bytes != uint64(size) || e.SHA256 != sum.String() || v.follows(l) != nil {
		return changed
	}
	v.note("line %d is what a crash left of a line; line %d says so", n, n+1)
	v.took(l)
	return nil
}

func quoteText(text string) string { return string(appendText(nil, text, maxText)) }
