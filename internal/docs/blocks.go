package docs

import (
	"regexp"
	"strings"
)

// A Block is a block of code in a page.
type Block struct {
	// Line is that of its first line of text in the page, from 1.
	Line int
	// Kind is the first word behind the backquotes, as console.
	Kind string
	// Words are those behind it: of on=HOST the value, of others "".
	Words map[string]string
	// Text ends with a newline, unless it is empty.
	Text string
}

// Has reports whether a word stands behind the backquotes.
func (b Block) Has(word string) bool {
	_, ok := b.Words[word]
	return ok
}

// Blocks returns the blocks of code of a page, in order.
func Blocks(page string) []Block {
	var all []Block
	inside := false
	number := 0
	for line := range strings.Lines(page) {
		number++
		info, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && inside:
			inside = false
		case fence:
			inside = true
			all = append(all, newBlock(number+1, info))
		case inside:
			all[len(all)-1].Text += line
		}
	}
	return all
}

func newBlock(line int, info string) Block {
	b := Block{Line: line, Words: map[string]string{}}
	for i, word := range strings.Fields(info) {
		if i == 0 {
			b.Kind = word
			continue
		}
		key, value, _ := strings.Cut(word, "=")
		b.Words[key] = value
	}
	return b
}

// A Step is a command of a console, with what it prints.
type Step struct {
	// Line is that of the command in the page.
	Line int
	// Command is for a shell.
	Command string
	// Output is what it prints, with "..." for what may be anything.
	Output string
}

// Steps returns the commands of a console.
func (b Block) Steps() []Step {
	var steps []Step
	number := b.Line
	for line := range strings.Lines(b.Text) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			steps = append(steps, Step{Line: number, Command: strings.TrimSpace(command)})
		} else if n := len(steps); n > 0 && strings.HasSuffix(steps[n-1].Command, `\`) {
			steps[n-1].Command = strings.TrimSuffix(steps[n-1].Command, `\`) + strings.TrimSpace(line)
		} else if n > 0 {
			steps[n-1].Output += line
		}
		number++
	}
	return steps
}

// Prints reports whether a text is what the step is to print.
func (s Step) Prints(text string) bool {
	var pattern strings.Builder
	pattern.WriteString("^")
	for line := range strings.Lines(s.Output) {
		if strings.TrimSpace(line) == "..." {
			pattern.WriteString(`(?:[^\n]*\n)*?`)
			continue
		}
		pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(line), regexp.QuoteMeta("..."), `[^\n]*`))
	}
	pattern.WriteString("$")
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return regexp.MustCompile(pattern.String()).MatchString(text)
}
