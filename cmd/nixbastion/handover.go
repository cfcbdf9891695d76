package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
//	new → old   reload           any time later: the policy file is to be read again
//	            drained          the list of drained builders is
//
// The end of the stream is the end of the process. Until it serves, the old process
// takes everything back.

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
	lineDrained = "drained"
)

// lines is one end of the talk.
type lines struct {
	conn net.Conn
	in   *bufio.Reader
}

func newLines(conn net.Conn) *lines { return &lines{conn, bufio.NewReaderSize(conn, maxHandOverLine)} }

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

// predecessor is the process whose place this one takes. Nil stands for none, and
// all its methods do nothing then.
type predecessor struct {
	*lines
	ended chan struct{} // closed when it has ended

	mu     sync.Mutex
	served bool
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
	p := &predecessor{lines: newLines(conn), ended: make(chan struct{})}
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
	p.mu.Lock()
	p.served = true
	p.mu.Unlock()
	if err := p.say(lineServing, version); err != nil {
		return fmt.Errorf("tell the process that was here before: %w", err)
	}
	if word, _, err := p.next(); err != nil || word != lineMain {
		return fmt.Errorf("the process that was here before said %q: %w", word, errors.Join(err, errNotMain))
	}
	go func() {
		defer close(p.ended)
		io.Copy(io.Discard, p.conn) // it says no more
	}()
	return nil
}

var errNotMain = errors.New("it does not let us take its place")

// failed says why this process does not take the place after all.
func (p *predecessor) failed(err error) {
	if p == nil || err == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.served {
		_ = p.say(lineFailed, err.Error()) // it sees our end, too
	}
}

// reload tells it to read the policy again: it may still have sessions of somebody who
// is not allowed any more.
func (p *predecessor) reload() {
	if p != nil {
		_ = p.say(lineReload, "") // it may have ended
	}
}

// drained tells it that the list of drained builders has changed: its builds would begin
// there.
func (p *predecessor) drained() {
	if p != nil {
		_ = p.say(lineDrained, "") // it may have ended
	}
}

// gone is closed when it has ended, nil if there was none.
func (p *predecessor) gone() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.ended
}
