package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxMistakes is how many mistakes are kept: a file of another kind altogether has
// one per line.
const maxMistakes = 200

// Mistake is one thing that is wrong with a policy file or with a file that it
// names.
type Mistake struct {
	File string
	// Line and Column count from 1; 0 is a file as a whole.
	Line, Column int
	// Text says what is wrong, Hint what to do about it, in one or more lines.
	Text, Hint string
}

// String returns "file:line:column: text" and a line for each hint.
func (m Mistake) String() string {
	var b strings.Builder
	b.WriteString(m.File)
	if m.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", m.Line, m.Column)
	}
	b.WriteString(": " + m.Text)
	for hint := range strings.Lines(m.Hint) {
		b.WriteString("\n  hint: " + strings.TrimSuffix(hint, "\n"))
	}
	return b.String()
}

// Mistakes is the error of a policy file that was refused: everything that is
// wrong with it, in the order of the file.
type Mistakes struct {
	List []Mistake
	// More is how many further ones were left out.
	More int
	// FileHash is that of a policy, as far as its files could be read; "" if its first
	// could not.
	FileHash string
}

// Error has one mistake after the other, each with its hint, on lines of its own.
func (m *Mistakes) Error() string {
	lines := make([]string, len(m.List))
	for i, one := range m.List {
		lines[i] = one.String()
	}
	if m.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", m.More))
	}
	return strings.Join(lines, "\n")
}

func (m *Mistakes) add(one Mistake) {
	if len(m.List) >= maxMistakes {
		m.More++
		return
	}
	m.List = append(m.List, one)
}

func (m *Mistakes) count() int { return len(m.List) + m.More }

// sorted returns the mistakes as an error, nil without any. Those of the policy
// file come first.
func (m *Mistakes) sorted(file string) error {
	if len(m.List) == 0 {
		return nil
	}
	slices.SortStableFunc(m.List, func(a, b Mistake) int {
		if a.File != b.File {
			if a.File == file || b.File != file && a.File < b.File {
				return -1
			}
			return 1
		}
		return cmp.Or(a.Line-b.Line, a.Column-b.Column)
	})
	return m
}

// mistake notes what is wrong at a node of the policy file. The hint is mandatory:
// whoever refuses knows what would be right.
func (d *decoder) mistake(at *yaml.Node, hint, format string, args ...any) {
	d.mistakes.add(Mistake{File: d.places.file(at), Line: at.Line, Column: at.Column, Text: fmt.Sprintf(format, args...), Hint: hint})
}

// remark is an error with a hint, from those who do not know where they stand in
// the file.
type remark struct{ text, hint string }

func (r *remark) Error() string { return r.text }

// refuse makes an error with a hint.
func refuse(hint, format string, args ...any) error {
	return &remark{fmt.Sprintf(format, args...), hint}
}

// hintOf returns the hint of an error, "" if it has none.
func hintOf(err error) string {
	var r *remark
	if errors.As(err, &r) {
		return r.hint
	}
	return ""
}

// quote shows text of the file: in quotes, without control characters, short, and no
// secret.
func quote(text string) string { return `"` + clip(text) + `"` }

// clip is quote without the quotes.
func clip(text string) string {
	const limit, more = 80, "…"
	if secretLooking.MatchString(text) {
		return secretShown
	}
	if len(text) <= limit {
		return unquoted(text)
	}
	return unquoted(text[:limit]) + more
}

func unquoted(text string) string {
	q := strconv.Quote(text)
	return q[1 : len(q)-1]
}
