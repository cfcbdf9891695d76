package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

// width is where text breaks, in columns. Commands and what they print stay as
// they are: somebody may want to paste them.
const width = 88

// A page is what the reader sees. Its methods may be called from several
// goroutines. A reader who has gone is noticed by SIGPIPE, so errors of writing
// are not looked at.
type page struct {
	mu       sync.Mutex // guards what follows
	out      io.Writer
	chapters int
}

func (p *page) print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	io.WriteString(p.out, text)
}

// title is the first line of all.
func (p *page) title(text string) { p.print(text + "\n") }

// chapter begins a part of the story.
func (p *page) chapter(heading string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chapters++
	fmt.Fprintf(p.out, "\n%d. %s\n\n", p.chapters, heading)
}

// text is a paragraph.
func (p *page) text(format string, args ...any) {
	words := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	p.print(strings.Join(fold(words, "", width), "\n") + "\n")
}

// command is what somebody types on a host; its output follows by quote.
func (p *page) command(host, typed string) { p.print("\n  " + host + "# " + typed + "\n") }

// quote is a line that a program printed.
func (p *page) quote(line string) { p.print("  " + line + "\n") }

// gap is an empty line.
func (p *page) gap() { p.print("\n") }

// fold breaks a line at blanks into lines of at most limit columns, as far as
// its words let it. All but the first are indented.
func fold(line, indent string, limit int) []string {
	var lines []string
	for len(line) > limit {
		// What stands before the first word is no place to break.
		first := len(line) - len(strings.TrimLeft(line, " "))
		at := strings.LastIndexByte(line[:limit+1], ' ')
		if at <= first {
			if at = strings.IndexByte(line[first:], ' ') + first; at < first {
				break
			}
		}
		lines = append(lines, line[:at])
		line = indent + line[at+1:]
	}
	return append(lines, line)
}
