package proxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Look is what the asker's screen can do. The zero value is a plain file.
type Look struct {
	// Terminal says that an answer which comes again may take the place of the one
	// before, Colour that states may have colours.
	Terminal, Colour bool
}

// render returns an answer as it was asked for. One that comes again is a line of its own
// as JSON.
func (q *question) render(a answer, look Look) (string, error) {
	switch {
	case q.json && q.watch > 0:
		text, err := inJSON(a)
		if err != nil {
			return "", err
		}
		var line bytes.Buffer
		err = json.Compact(&line, []byte(text))
		return line.String() + "\n", err
	case q.json:
		return inJSON(a)
	case q.watch > 0:
		return watched(inWords(a, look), look), nil
	}
	return inWords(a, look), nil
}

// watched puts an answer in the place of the one before, or behind it.
func watched(text string, look Look) string {
	if !look.Terminal {
		return text + "\n"
	}
	// Home, each line with the rest of it erased, and what is below: nothing flickers.
	return "\x1b[H" + strings.ReplaceAll(text, "\n", "\x1b[K\n") + "\x1b[J"
}

func inJSON(a any) (string, error) {
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(a); err != nil {
		return "", fmt.Errorf("write the answer: %w", err)
	}
	return Printable(text.String()), nil
}

func inWords(a answer, look Look) string {
	page := page{colour: look.Colour}
	a.print(&page)
	return page.String()
}

// Printable takes away what could do more to a terminal than print: texts of
// peers are in answers, such as what a builder's sshd said.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(text, "?"))
}

// page collects lines for people. All that is written is printable but for colours
// of its own.
type page struct {
	text   strings.Builder
	colour bool
}

func (p *page) String() string { return p.text.String() }

func (p *page) line(format string, args ...any) {
	p.text.WriteString(Printable(fmt.Sprintf(format, args...)) + "\n")
}

// heading is a line that stands out.
func (p *page) heading(format string, args ...any) {
	p.text.WriteString(p.paint(bold, Printable(fmt.Sprintf(format, args...))) + "\n")
}

// table writes rows with aligned columns, indented. Those named by their place have
// words for a state.
func (p *page) table(rows [][]string, states ...int) {
	var widths []int
	for _, row := range rows {
		for i := range row {
			row[i] = strings.ReplaceAll(Printable(row[i]), "\n", " ")
		}
		for i := range len(row) - 1 { // the last one needs no room behind it
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		line.WriteByte(' ')
		for i, cell := range row {
			line.WriteByte(' ')
			colour := plain
			if slices.Contains(states, i) {
				colour = stateColour(cell)
			}
			line.WriteString(p.paint(colour, cell))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+1))
			}
		}
		p.text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// What stands out, as terminals have it.
const (
	plain  = ""
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (p *page) paint(colour, text string) string {
	if !p.colour || colour == plain || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// stateColour is that of a word for the state of a builder or build.
func stateColour(text string) string {
	word, _, _ := strings.Cut(text, " ")
	switch word {
	case "up", "built", "running":
		return green
	case "down", "suspended", "removed", "failed", "killed", "error", "stopped":
		return red
	case "overloaded", "drained", "waking", "waiting":
		return yellow
	}
	return plain
}

// span is a duration as people read it: its two largest units. What is to come by a clock
// that was set back is now.
func span(d time.Duration) string {
	switch d = max(0, d.Round(time.Second)); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh %02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd %dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
