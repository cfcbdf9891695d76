package tracefile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Reader reads the lines of one file. It keeps none of them.
type Reader struct {
	name  string
	lines *bufio.Scanner
	at    int
}

// NewReader reads from in; name is what errors call it.
func NewReader(name string, in io.Reader) *Reader {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	return &Reader{name: name, lines: lines}
}

// Line is the number of the line that Next returned last, from 1.
func (r *Reader) Line() int { return r.at }

// Next returns what the next line says, a build or, at the first line only, a
// fleet, and io.EOF after the last. Empty lines are passed over. An error begins
// with file:line.
func (r *Reader) Next() (*Build, *Fleet, error) {
	for r.lines.Scan() {
		r.at++
		if line := bytes.TrimSpace(r.lines.Bytes()); len(line) > 0 {
			build, fleet, err := r.parse(line)
			return build, fleet, r.Place(err)
		}
	}
	switch err := r.lines.Err(); {
	case err == nil:
		return nil, nil, io.EOF
	case errors.Is(err, bufio.ErrTooLong):
		r.at++
		return nil, nil, r.Place(fmt.Errorf("the line has more than %d bytes", maxLine))
	default:
		return nil, nil, fmt.Errorf("read %s: %w", r.name, err)
	}
}

// Place puts the file and the line in front of an error.
func (r *Reader) Place(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s:%d: %w", r.name, r.at, err)
}

func (r *Reader) parse(line []byte) (*Build, *Fleet, error) {
	if r.at == 1 && isFleet(line) {
		f := new(Fleet)
		if err := strictly(line, f); err != nil {
			return nil, nil, err
		}
		return nil, f, f.check()
	}
	b := new(Build)
	if err := strictly(line, b); err != nil {
		return nil, nil, err
	}
	return b, nil, b.check()
}

func isFleet(line []byte) bool {
	var keys struct {
		Builders json.RawMessage `json:"builders"`
	}
	return json.Unmarshal(line, &keys) == nil && keys.Builders != nil
}

// strictly refuses keys that it does not know: a misspelt one would be left out.
func strictly(line []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("there is more than one value on the line")
	}
	return nil
}
