package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// An upgrade is a talk between the process that serves and the one that it started
// to take its place, over a pair of sockets, in lines:
//
//	new → old   open             all is ready but the store
//	old → new   yours            the store is given away
//	            no REASON        it is not
//	new → old   serving VERSION  clients are answered
//	old → new   main             the service manager knows: talk to it
//	new → old   failed REASON    instead of any of its lines, at its end
//	new ↔ old   reload           any time later: the policy file is to be read again
//	new → old   drains           likewise the file of drained builders
//
// The end of the stream is the end of the process. Until it serves, the old process
// takes everything back. Words of later are passed over by who does not know them.

const (
	// handOverVariable has "VERSION FD": of this protocol, and the new process's end.
	handOverVariable = "NIXBASTION_HANDOVER"
	handOverVersion  = "1"
	// maxHandOverLine bounds a line, in bytes.
	maxHandOverLine = 4 << 10

	lineOpen    = "open"
	lineYours   = "yours"
	lineNo      = "no"
	lineServing = "serving"
	lineMain    = "main"
	lineFailed  = "failed"
	lineReload  = "reload"
	lineDrains  = "drains"

	// tellPatience is how long the other process may take to hear of something, if it
	// has not read for long: it may be stopped.
	tellPatience = time.Second
)

// lines is one end of the talk.
type lines struct {
	conn net.Conn
	in   *bufio.Reader

	mu sync.Mutex // guards what follows, and is held while something is told
	// settled says that the place was taken, and owed is what is to be told then.
	settled bool
	owed    []string
}

func newLines(conn net.Conn) *lines {
	return &lines{conn: conn, in: bufio.NewReaderSize(conn, maxHandOverLine)}
}

// tell has the other process do something once the place was taken, if it does not end
// before: it may still have sessions of somebody who is not allowed any more.
func (l *lines) tell(word string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settled {
		l.conn.SetWriteDeadline(time.Now().Add(tellPatience))
		_ = l.say(word, "") // it may have ended
	} else if !slices.Contains(l.owed, word) {
		l.owed = append(l.owed, word)
	}
}

// settle says that the place was taken.
func (l *lines) settle() {
	l.mu.Lock()
	l.settled = true
	owed := l.owed
	l.mu.Unlock()
	for _, word := range owed {
		l.tell(word)
	}
}

// hear does what the other process wants, until it ends.
func (l *lines) hear(do func(word string)) {
	for {
		word, _, err := l.next()
		if err != nil {
			return
		}
		do(word)
	}
}

// newline stands for one within a line.
const newline = "\x1f"

// say sends a line. What follows the word is made to fit.
func (l *lines) say(word, rest string) error {
	rest = strings.ReplaceAll(strings.TrimSpace(rest), "\n", newline)
	rest = rest[:min(len(rest), maxHandOverLine/2)]
	_, err := io.WriteString(l.conn, strings.TrimSpace(word+" "+rest)+"\n")
	return err
}

// next reads a line.
func (l *lines) next() (word, rest string, err error) {
	line, err := l.in.ReadSlice('\n')
	if err != nil {
		return "", "", err
	}
	word, rest, _ = strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
	return word, strings.ReplaceAll(rest, newline, "\n"), nil
}

// predecessor is the process whose place this one takes. Nil stands for none.
type predecessor struct {
	*lines
	// serves is when this process has said that it does.
	serves atomic.Bool
}

// findPredecessor returns the process that started this one to take its place, nil if
// none did.
func findPredecessor() (*predecessor, error) {
	text, is := os.LookupEnv(handOverVariable)
	if !is {
		return nil, nil
	}
	os.Unsetenv(handOverVariable)
	version, number, _ := strings.Cut(text, " ")
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("%s=%q has no descriptor", handOverVariable, text)
	}
	syscall.CloseOnExec(fd)
	file := os.NewFile(uintptr(fd), "predecessor")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("talk to the process that was here before: %w", err)
	}
	p := &predecessor{lines: newLines(conn)}
	if version != handOverVersion {
		err := fmt.Errorf("the process that was here before hands over as version %s of the protocol, this one takes version %s\nhint: restart instead of upgrading", version, handOverVersion)
		p.failed(err)
		return nil, err
	}
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // it could not know
	return p, nil
}

// awaitStore asks for the store and returns when it is free.
func (p *predecessor) awaitStore() error {
	if err := p.say(lineOpen, ""); err != nil {
		return err
	}
	switch word, rest, err := p.next(); {
	case err != nil:
		return fmt.Errorf("the process that was here before ended: %w", err)
	case word == lineNo:
		return fmt.Errorf("the process that was here before keeps the store: %s", rest)
	case word != lineYours:
		return fmt.Errorf("the process that was here before said %q", word)
	}
	return nil
}

// serving says that clients are answered, and returns once the service manager listens
// to us.
func (p *predecessor) serving() error {
	if p == nil {
		return nil
	}
	p.serves.Store(true)
	if err := p.say(lineServing, version); err != nil {
		return fmt.Errorf("tell the process that was here before: %w", err)
	}
	if word, _, err := p.next(); err != nil || word != lineMain {
		return fmt.Errorf("the process that was here before said %q: %w", word, errors.Join(err, errNotMain))
	}
	p.settle()
	return nil
}

var errNotMain = errors.New("it does not let us take its place")

// failed says why this process does not take the place after all.
func (p *predecessor) failed(err error) {
	if p != nil && err != nil && !p.serves.Load() {
		_ = p.say(lineFailed, err.Error()) // it sees our end, too
	}
}
