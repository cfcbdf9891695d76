package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"

	"nixbastion/internal/nix"
)

// logObject is what a log is in JSON: one object a line, each with some text; the last
// one has the build. With More the line goes on in the next object.
type logObject struct {
	Text  string       `json:"text"`
	More  bool         `json:"more,omitempty"`
	Build *buildRecord `json:"build,omitempty"`
}

// writeLog streams the log of a build: of one under way as far as it has come, or with
// --follow until it ends.
func (p *Proxy) writeLog(ctx context.Context, a *asker, out io.Writer, q *question) error {
	if len(q.args) != 1 {
		return usage("say log BUILD, with its id, the begin of its derivation's hash, or its name")
	}
	if err := a.mayAsk("what others have built"); err != nil {
		return err
	}
	l := p.builds.ledger
	r, err := l.find(a, q.args[0], false)
	if err != nil {
		return err
	}
	lines := &logLines{out: bufio.NewWriterSize(out, 32<<10), to: out, json: q.json}
	if e := l.entry(r.ID); e != nil {
		if release, ok := e.log.hold(); ok {
			defer release()
			return lines.live(ctx, e, q.follow)
		}
		<-e.build.done
		r = e.snapshot()
	}
	return lines.kept(l, &r)
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
		reader.until = e.log.size()
	}
	var failure error
	text := &logText{w: lineWriter{w}}
	e.log.read(reader, func(m nix.LogMessage) error {
		failure = text.message(m)
		return failure
	})
	if failure != nil || ctx.Err() != nil {
		return nil // nobody reads it any more
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
	if w.json {
		return w.object(logObject{Text: text, More: more})
	}
	w.out.WriteString(plainLine(text)) // a file may have been written by somebody else
	if !more {
		w.out.WriteByte('\n')
	}
	_, err := w.out.Write(nil)
	return err
}

func (w *logLines) object(line logObject) error {
	enc := json.NewEncoder(w.out)
	enc.SetEscapeHTML(false)
	err := enc.Encode(line)
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
