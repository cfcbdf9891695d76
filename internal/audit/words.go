package audit

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// String is the event for people: time, what happened, and all fields that are set.
// It is plain text on one line, whatever is in the fields.
func (e *Event) String() string {
	f := &wordFields{}
	fmt.Fprintf(f, "%s  %-14s", e.Time.Local().Format(time.DateTime), word(string(e.Kind)))
	e.each(f)
	return f.Builder.String()
}

// wordFields writes fields as name=value.
type wordFields struct{ strings.Builder }

func (f *wordFields) field(name, value string) { fmt.Fprintf(f, " %s=%s", name, value) }

func (f *wordFields) text(name, value string, _ int) {
	if value != "" {
		f.field(name, word(value))
	}
}

func (f *wordFields) number(name string, value uint64) {
	if value != 0 {
		f.field(name, strconv.FormatUint(value, 10))
	}
}

func (f *wordFields) yes(name string) { f.field(name, "yes") }

func (f *wordFields) seconds(name string, value float64) {
	if value > 0 {
		f.field(name, strconv.FormatFloat(value, 'f', 3, 64))
	}
}

func (f *wordFields) texts(name string, values []string, _ int) {
	words := make([]string, len(values))
	for i, value := range values {
		words[i] = word(value)
	}
	if len(words) > 0 {
		f.field(name, strings.Join(words, ","))
	}
}

func (f *wordFields) outputs(name string, values []Output) {
	for _, o := range values {
		f.field(name+"."+word(o.Name), word(o.Path))
	}
}

// word is a text that is one word: in quotes if it would be several. A file that
// somebody has changed can have anything in it.
func word(text string) string {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }
	if text != "" && !strings.ContainsFunc(text, odd) {
		return text
	}
	return strconv.QuoteToASCII(text)
}
