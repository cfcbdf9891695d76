package upstream

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode"
)

// keepStderr is how much of what a remote program prints on its standard error
// is kept, in bytes. The last words are the ones that explain its end.
const keepStderr = 4 << 10

// tail keeps the last bytes written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte     // at most twice keepStderr
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-keepStderr):]...)
	if over := len(t.buf) - keepStderr; over > keepStderr {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = t.buf[:0]
}

// String returns the text as one printable line. It begins with the last error,
// if there is one: what comes before that is of no use in one of our own.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := t.buf[max(0, len(t.buf)-keepStderr):]
	if bytes.HasPrefix(text, errorMark[1:]) {
		text = append([]byte{'\n'}, text...)
	}
	return clean(string(text[max(0, bytes.LastIndex(text, errorMark)):]))
}

// errorMark begins what Nix says before it gives up.
var errorMark = []byte("\nerror:")

// clean makes a peer's text fit for a line in a log or on a terminal: it can
// neither begin a new line nor move the cursor.
func clean(text string) string {
	words := strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(r rune) bool { return unicode.IsSpace(r) })
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.Join(words, " "))
}

// remark is what a remote program said beside the protocol, and how it ended.
type remark struct {
	stderr string
	status exitStatus
}

// gaveUp reports whether the program ended by itself and for a reason of its own,
// not because it lost the daemon behind it.
func (r remark) gaveUp() bool {
	lost := slices.ContainsFunc(daemonLost, func(words string) bool { return strings.Contains(r.stderr, words) })
	return r.status.known && r.status.code == 1 && strings.HasPrefix(r.stderr, "error:") && !lost
}

// daemonLost are the words of a Nix whose daemon has gone.
var daemonLost = []string{"unexpected end-of-file", "disconnected unexpectedly", "Broken pipe", "Connection reset by peer"}

// String is "" if there is nothing to say, and else continues a sentence.
func (r remark) String() string {
	var s string
	if r.status.known && r.status.code != 0 {
		s = fmt.Sprintf(", which ended with status %d", r.status.code)
	}
	if r.stderr != "" {
		s += fmt.Sprintf(" and said %q", r.stderr)
	}
	return s
}
