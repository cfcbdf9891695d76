package proxy

import (
	"io"
	"regexp"
	"strings"
	"unicode"

	"nixbastion/internal/nix"
)

// logText writes the log of a build as the lines that people read. What could do more
// to a terminal than print is taken away.
type logText struct {
	w   io.Writer
	err error // of w
}

// message writes what a message says, which is nothing for most that move a progress
// bar.
func (t *logText) message(m nix.LogMessage) error {
	switch {
	case m.Kind == nix.LogText:
		return t.lines(m.Text)
	case m.Kind != nix.LogResult || len(m.Fields) == 0 || !m.Fields[0].IsText:
	case m.Type == nix.ResultBuildLogLine, m.Type == nix.ResultPostBuildLogLine:
		return t.lines(m.Fields[0].Text)
	}
	return nil
}

func (t *logText) lines(text string) error {
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if err := t.line(line); err != nil {
			return err
		}
	}
	return nil
}

func (t *logText) line(text string) error {
	if t.err == nil {
		_, t.err = io.WriteString(t.w, plainLine(text)+"\n")
	}
	return t.err
}

// escapes are the sequences of terminals: those with parameters, those with a text
// such as the title, and those of one character.
var escapes = regexp.MustCompile("(?:\x1b\\[|\u009b)[0-?]*[ -/]*[@-~]|(?:\x1b[]P^_X]|[\u009d\u0090\u009e\u009f\u0098])[^\x07\x1b\u009c]*(?:\x07|\x1b\\\\|\u009c)?|\x1b[ -/]*[0-~]")

// plainLine is a line of a peer without what could do more to a terminal than print.
func plainLine(text string) string {
	plain := true
	for i := 0; i < len(text) && plain; i++ {
		plain = text[i] >= ' ' && text[i] < 0x7f || text[i] == '\t'
	}
	if plain {
		return text
	}
	text = escapes.ReplaceAllString(strings.ToValidUTF8(text, "?"), "")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || unicode.IsPrint(r):
			return r
		case r == '\r' || r == '\n':
			return ' '
		}
		return '?'
	}, strings.TrimRight(text, "\r"))
}
