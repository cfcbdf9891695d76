package audit

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"
)

// Filter chooses events. What is not set chooses all.
type Filter struct {
	Kinds     []Kind
	Principal string
	Address   string
	Builder   string
	// Drv and Path are parts of store paths: the derivation's, and that of an upload,
	// a signature or an output.
	Drv, Path string
	// Since and Until bound the time, Since included.
	Since, Until time.Time
}

// Matches reports whether the filter chooses an event.
func (f *Filter) Matches(e *Event) bool {
	return (len(f.Kinds) == 0 || slices.Contains(f.Kinds, e.Kind)) &&
		(f.Principal == "" || f.Principal == e.Principal) &&
		(f.Address == "" || f.Address == e.Address) &&
		(f.Builder == "" || f.Builder == e.Builder) &&
		(f.Drv == "" || strings.Contains(e.Drv, f.Drv)) &&
		(f.Path == "" || e.hasPath(f.Path)) &&
		(f.Since.IsZero() || !e.Time.Before(f.Since)) &&
		(f.Until.IsZero() || e.Time.Before(f.Until))
}

func (e *Event) hasPath(part string) bool {
	return strings.Contains(e.Path, part) || slices.ContainsFunc(e.Outputs, func(o Output) bool { return strings.Contains(o.Path, part) })
}

// Scan shows each event of a file that the filter chooses, with its line as it
// stands there, which is good until show returns. Lines that are not of the format
// are passed over and counted: whether the file is whole is for [Verify] to say.
func Scan(file string, f *Filter, show func(e *Event, line []byte) error) (passed int, err error) {
	lines, err := openLines(file)
	if err != nil {
		return 0, err
	}
	defer lines.close()
	for {
		switch err := lines.next(); {
		case errors.Is(err, io.EOF):
			return passed, nil
		case err != nil:
			return passed, err
		}
		var e Event
		if int64(len(lines.text)) != lines.size || json.Unmarshal(lines.text, &e) != nil {
			if lines.whole { // the last one may be on its way
				passed++
			}
			continue
		}
		if !f.Matches(&e) {
			continue
		}
		if err := show(&e, lines.text); err != nil {
			return passed, err
		}
	}
}
