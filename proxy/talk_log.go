package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"nixbastion/internal/nix"
)

// logObject is what a log is in JSON: one object a line, each with some text; the last
// one has the build. With More the line goes on in the next object.
type logObject struct {
	Text  string       `json:"text"`
	More  bool         `json:"more,omitempty"`
	Build *buildRecord `json:"build,omitempty"`
}

// cutShort stands where the rest of a log was lost.
const cutShort = "nixbastion: the rest of the log is lost: it could not be written on the proxy's disk"

// writeLog streams the log of a build: of one under way as far as it has come, or with
// --follow until it ends.
func (p *Proxy) writeLog(ctx context.Context, a *asker, out io.Writer, q *question) error {
	if len(q.args) != 1 {
		return usage("say log BUILD, with its id, the begin of its derivation's hash, or its name")
	}
	if err := a.mayAsk("what others have built"); err != nil {
		return err
	}
	r, err := p.builds.ledger.find(a, q.args[0], false)
	if err != nil {
		return err
	}
	return p.logOf(ctx, a, out, r, q)
}

// logOf streams the log of a build that was found.
func (p *Proxy) logOf(ctx context.Context, a *asker, out io.Writer, r *buildRecord, q *question) (err error) {
	l := p.builds.ledger
	lines := &logLines{out: bufio.NewWriterSize(out, 32<<10), to: out, json: q.json}
	if e := l.entry(r.ID); e != nil {
		if release, ok := e.log.hold(); ok {
			defer release()
			return lines.live(ctx, e, q.follow)
		}
	}
	if r.Ended == nil { // it has ended since it was found
		if r, err = l.find(a, r.ID, false); err != nil {
			return err
		}
	}
	return lines.kept(l, r)
}

// logLines writes lines of a log in the form that was asked for.
type logLines struct {
	out  *bufio.Writer
	to   io.Writer
	json bool
}

// live writes the log of a build that is under way.
func (w *logLines) live(ctx context.Context, e *ledgerEntry, follow bool) error {
	reader := &logReader{ctx: ctx, log: e.log, idle: w.flush}
	if !follow {
		reader.bounded, reader.until = true, e.log.size()
	}
	var failure error
	text := &logText{w: lineWriter{w}}
	e.log.read(reader, func(m nix.LogMessage) error {
		failure = text.message(m)
		return failure
	})
	switch {
	case failure != nil:
		return nil // nobody reads it any more
	case ctx.Err() != nil:
		w.flush()
		return endedEarly(ctx)
	}
	if e.log.broken() {
		w.piece(cutShort, false)
	}
	r := e.snapshot()
	w.end(&r)
	return nil
}

// kept writes the log of a build that has ended.
func (w *logLines) kept(l *ledger, r *buildRecord) error {
	var failure error
	err := l.files.copyLog(r.ID, func(piece []byte, more bool) error {
		failure = w.piece(string(piece), more)
		return failure
	})
	switch {
	case errors.Is(err, errNotKept):
		return nix.Refuse("the log of build %s, %s, is not kept any more (limits.build_logs and limits.build_history say how much is)", r.ID, r.stateText())
	case failure != nil:
		return nil
	case err != nil:
		return err
	}
	if w.json { // as text the file has the end already
		return w.object(logObject{Build: r})
	}
	w.flush()
	return nil
}

func (w *logLines) end(r *buildRecord) {
	switch {
	case w.json:
		w.object(logObject{Build: r})
	case r.Ended != nil:
		w.piece(r.endLine(), false)
	}
	w.flush()
}

func (w *logLines) piece(text string, more bool) error {
	text = plainLine(text) // a file may have been written by somebody else
	if w.json {
		return w.object(logObject{Text: text, More: more})
	}
	w.out.WriteString(text)
	if !more {
		w.out.WriteByte('\n')
	}
	_, err := w.out.Write(nil)
	return err
}

func (w *logLines) object(line logObject) error {
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(line); err != nil {
		return err
	}
	_, err := w.out.WriteString(Printable(text.String())) // what peers said of the build, too
	if line.Build != nil {
		w.flush()
	}
	return err
}

// flush sends what was written on its way.
func (w *logLines) flush() {
	w.out.Flush()
	flush(w.to)
}

// lineWriter takes whole lines.
type lineWriter struct{ to *logLines }

func (w lineWriter) Write(line []byte) (int, error) {
	return len(line), w.to.piece(string(line[:len(line)-1]), false)
}
