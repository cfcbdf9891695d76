package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"

	"nixbastion/internal/testbed"
)

// A reply is what a command printed, on both outputs in the order in which it
// came, and its exit status.
type reply struct {
	text   string
	status int
}

// typed runs a command on a host as somebody would type it in root's home, and
// shows it with its output as it comes; show says in which lines a line of it
// appears, if at all. A status other than 0 is no error.
func typed(ctx context.Context, p *page, h *testbed.Host, command string, show func(line string) []string) (reply, error) {
	p.command(h.Name(), command)
	cmd := h.Command(ctx, "bash", "-c", "cd && "+command)
	out := &shown{page: p, lines: show}
	cmd.Stdout, cmd.Stderr = out, out
	err := h.Run(cmd)
	if ctx.Err() != nil {
		return reply{}, context.Cause(ctx)
	}
	out.flush()
	if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.Exited()) {
		return reply{}, fmt.Errorf("run %q on %s: %w\n%s", command, h.Name(), err, out.all.String())
	}
	return reply{out.all.String(), cmd.ProcessState.ExitCode()}, nil
}

// shown shows complete lines and keeps everything. One command writes to it.
type shown struct {
	page  *page
	lines func(string) []string
	all   bytes.Buffer
	next  int // where in all the next line to show begins
}

func (s *shown) Write(text []byte) (int, error) {
	s.all.Write(text)
	for {
		line, _, whole := bytes.Cut(s.all.Bytes()[s.next:], []byte{'\n'})
		if !whole {
			return len(text), nil
		}
		s.show(string(line))
		s.next += len(line) + 1
	}
}

// flush shows a last line that has no end.
func (s *shown) flush() {
	if rest := s.all.Bytes()[s.next:]; len(rest) > 0 {
		s.show(string(rest))
	}
}

func (s *shown) show(line string) {
	for _, l := range s.lines(strings.TrimRight(line, "\r ")) {
		s.page.quote(l)
	}
}

func everything(line string) []string { return []string{line} }

// dull is what Nix says about its own plans and transfers, and what the builder's
// Nix says beside ours.
var dull = regexp.MustCompile(`^$|^this derivation will be built|^these |^  /nix/store/|^copying |^warning: |^building '[^']*'\.\.\.$`)

// nixMatters leaves out the dull and breaks what is too long for a screen.
func nixMatters(line string) []string {
	if dull.MatchString(line) {
		return nil
	}
	indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
	return fold(line, indent+"  ", nixWidth)
}

// nixWidth leaves the sentences of Nix whole where only a store path makes them
// long; with the page's margin they still fit into 100 columns.
const nixWidth = 96
