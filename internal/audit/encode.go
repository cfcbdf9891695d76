package audit

import (
	"strconv"
	"unicode/utf8"
)

// jsonFields appends fields to an object of JSON that has others already.
type jsonFields struct{ b []byte }

// appendEvent appends what stands between the time and prev of a line.
func appendEvent(b []byte, e *Event) []byte {
	f := jsonFields{append(b, `,"event":"`...)}
	f.b = append(append(f.b, e.Kind...), '"')
	e.each(&f)
	return f.b
}

func (f *jsonFields) name(name string) {
	f.b = append(append(append(f.b, `,"`...), name...), `":`...)
}

func (f *jsonFields) text(name, value string, limit int) {
	if value != "" {
		f.name(name)
		f.b = appendText(f.b, value, limit)
	}
}

func (f *jsonFields) number(name string, value uint64) {
	if value != 0 {
		f.name(name)
		f.b = strconv.AppendUint(f.b, value, 10)
	}
}

func (f *jsonFields) yes(name string) {
	f.name(name)
	f.b = append(f.b, "true"...)
}

func (f *jsonFields) seconds(name string, value float64) {
	if value > 0 {
		f.name(name)
		f.b = strconv.AppendFloat(f.b, value, 'f', 3, 64)
	}
}

func (f *jsonFields) texts(name string, values []string, limit int) {
	list(f, name, values, func(value string) { f.b = appendText(f.b, value, limit) })
}

func (f *jsonFields) outputs(name string, values []Output) {
	list(f, name, values, func(o Output) {
		f.b = append(f.b, `{"name":`...)
		f.b = appendText(f.b, o.Name, maxText)
		f.text("path", o.Path, maxPath)
		f.text("nar_hash", o.NarHash, maxText)
		f.number("size", o.Size)
		f.b = append(f.b, '}')
	})
}

// list appends a list of as many items as are written.
func list[T any](f *jsonFields, name string, values []T, item func(T)) {
	if len(values) == 0 {
		return
	}
	f.name(name)
	f.b = append(f.b, '[')
	for i, value := range values[:min(len(values), maxList)] {
		if i > 0 {
			f.b = append(f.b, ',')
		}
		item(value)
	}
	f.b = append(f.b, ']')
}

// appendText appends a string of JSON that has at most limit bytes of a text. What
// does not print, or is not ASCII, becomes an escape of Go's within the text, as
// does the backslash: nobody's terminal or editor is told anything by it.
func appendText(b []byte, text string, limit int) []byte {
	cut := len(text) > limit
	if cut {
		text = text[:limit]
	}
	b = append(b, '"')
	for plain(text) < len(text) {
		n := plain(text)
		b = append(b, text[:n]...)
		r, size := utf8.DecodeRuneInString(text[n:])
		b = appendEscaped(b, text[n:n+size], r)
		text = text[n+size:]
	}
	b = append(b, text...)
	if cut {
		b = append(b, "..."...)
	}
	return append(b, '"')
}

// plain is how much of a text needs no escape.
func plain(text string) int {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return i
		}
	}
	return len(text)
}

// appendEscaped appends one character. Of the two layers of escapes the backslash
// of ours is itself escaped for JSON.
func appendEscaped(b []byte, char string, r rune) []byte {
	switch {
	case r == '"':
		return append(b, `\"`...)
	case r == '\\':
		return append(b, `\\\\`...)
	case r == utf8.RuneError && len(char) == 1, r < utf8.RuneSelf:
		const digits = "0123456789abcdef"
		return append(b, '\\', '\\', 'x', digits[char[0]>>4], digits[char[0]&15])
	}
	quoted := strconv.QuoteRuneToASCII(r) // '\u202e'
	return append(append(b, '\\'), quoted[1:len(quoted)-1]...)
}
