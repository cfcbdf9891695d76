package tracefile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
)

const (
	// keptInputs is how many inputs of a build are written besides the outputs of
	// other builds, the largest. The rest are many and small.
	keptInputs = 64
	// knownOutputs is how many outputs are remembered, to know them as inputs. Each
	// takes some 200 bytes.
	knownOutputs = 16_384
)

// Recorder appends builds to a file. When that is as large as it may be it is
// renamed to FILE.1, in place of an earlier one, and begun anew: both together
// never take more than twice the limit. Its methods are safe for concurrent use.
type Recorder struct {
	path  string
	limit int64

	mu   sync.Mutex // held while a line is written; guards what follows
	file *os.File   // nil after Close, or if the last rotation failed
	size int64
	done bool
	// outputs are those written last, older to tell which go first.
	outputs map[string]bool
	older   map[string]bool
}

// NewRecorder opens a file to append to, with access for its owner alone: store
// paths may be secrets. The file may have limit bytes, at least one line's. What
// a crash left of a line is cut off.
func NewRecorder(path string, limit int64) (*Recorder, error) {
	r := &Recorder{path: path, limit: max(limit, maxLine), outputs: map[string]bool{}}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Recorder) open() error {
	file, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	size, err := wholeLines(file)
	if err == nil {
		err = file.Truncate(size)
	}
	if err == nil {
		_, err = file.Seek(size, io.SeekStart)
	}
	if err != nil {
		file.Close()
		return fmt.Errorf("continue %s: %w", r.path, err)
	}
	r.file, r.size = file, size
	return nil
}

// wholeLines is how much of a file ends with a newline.
func wholeLines(file *os.File) (int64, error) {
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	from := max(0, end-maxLine)
	tail := make([]byte, end-from)
	if _, err := file.ReadAt(tail, from); err != nil && err != io.EOF {
		return 0, err
	}
	last := bytes.LastIndexByte(tail, '\n')
	if last < 0 && from > 0 {
		return 0, errors.New("it does not consist of lines")
	}
	return from + int64(last) + 1, nil
}

// Record appends a build. It writes the largest of its inputs and those that it
// has seen as outputs, and changes nothing of b. It writes to the disk: no lock
// should be held meanwhile.
func (r *Recorder) Record(b Build) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	b.Inputs = r.choose(b.Inputs)
	if err := b.check(); err != nil {
		return fmt.Errorf("record %s: %w", b.Drv, err)
	}
	line, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("record %s: %w", b.Drv, err)
	}
	r.remember(b.Outputs)
	return r.write(append(line, '\n'))
}

// choose returns the inputs that are written.
func (r *Recorder) choose(all []Input) []Input {
	bySize := slices.Clone(all)
	slices.SortStableFunc(bySize, func(a, b Input) int { return cmp.Compare(b.Size, a.Size) })
	var chosen []Input
	others := 0
	for _, in := range bySize {
		if !r.outputs[in.Path] && !r.older[in.Path] {
			if others++; others > keptInputs {
				continue
			}
		}
		if chosen = append(chosen, in); len(chosen) == maxInputs/10 {
			break
		}
	}
	return chosen
}

// remember keeps two generations, so that forgetting needs no order.
func (r *Recorder) remember(outputs []Path) {
	for _, out := range outputs {
		if len(r.outputs) >= knownOutputs/2 {
			r.outputs, r.older = map[string]bool{}, r.outputs
		}
		r.outputs[out.Path] = true
	}
}

func (r *Recorder) write(line []byte) error {
	if len(line) > maxLine {
		return fmt.Errorf("a line of %d bytes is too long for %s", len(line), r.path)
	}
	if err := r.makeRoom(int64(len(line))); err != nil {
		return err
	}
	n, err := r.file.Write(line)
	if err != nil {
		r.takeBack(n)
		return err
	}
	r.size += int64(n)
	return nil
}

// takeBack removes the part of a line that a full disk let through, so that the
// next one does not become part of it.
func (r *Recorder) takeBack(n int) {
	if n == 0 {
		return
	}
	if r.file.Truncate(r.size) == nil {
		if _, err := r.file.Seek(r.size, io.SeekStart); err == nil {
			return
		}
	}
	r.file.Close()
	r.file = nil // open will cut it off
}

func (r *Recorder) makeRoom(n int64) error {
	switch {
	case r.done:
		return os.ErrClosed
	case r.file == nil:
		return r.open()
	case r.size == 0 || r.size+n <= r.limit:
		return nil
	}
	if err := os.Rename(r.path, r.path+".1"); err != nil {
		return err
	}
	r.file.Close()
	r.file = nil
	return r.open()
}

// Reopen takes the recording up again after Close.
func (r *Recorder) Reopen() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = false
	if r.file != nil {
		return nil
	}
	return r.open()
}

// Close ends the recording; what Record is asked for later fails.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = true
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}
