package cache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// promisedName is the file in the scratch of a retired process that lists the hash
// parts it keeps from eviction. It only grows, until the process ends: what is
// listed exists, so it is never longer than the store has paths.
//
// Who promises lists the path first and then looks whether its narinfo is there; who
// evicts takes the narinfo away first and then looks at the list, and puts it back if
// the path is listed. So whichever comes first, nobody is promised what goes.
const promisedName = "promised"

const promisedLine = hashPartLen + 1 // with its newline

// promises is the list as its owner has it.
type promises struct {
	mu     sync.Mutex // held while a line is written; guards what follows
	file   *os.File
	listed map[string]bool
	failed error // why the list cannot be trusted to be whole any more
}

func newPromises(scratch *os.Root) (*promises, error) {
	f, err := scratch.OpenFile(promisedName, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make list of promised paths: %w", err)
	}
	return &promises{file: f, listed: map[string]bool{}}, nil
}

// add lists hash parts, and reports whether one of them was not listed before.
func (l *promises) add(hashParts []string) (fresh bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var text []byte
	for _, h := range hashParts {
		if !l.listed[h] {
			l.listed[h] = true
			text = append(append(text, h...), '\n')
		}
	}
	if len(text) == 0 || l.failed != nil {
		return false, l.failed
	}
	if _, err := l.file.Write(text); err != nil {
		l.failed = fmt.Errorf("write list of promised paths: %w", diskError(err))
	}
	return true, l.failed
}

func (l *promises) close() { l.file.Close() }

// promisedReader reads the list of another process while it grows.
type promisedReader struct {
	root   *os.Root // of the scratch of that process
	offset int64
}

var errPromises = errors.New("list of promised paths is malformed")

// more returns what was listed since the last call.
func (r *promisedReader) more() ([]string, error) {
	f, err := r.root.Open(promisedName)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, r.offset, 1<<62))
	if err != nil {
		return nil, err
	}
	var hashParts []string
	for ; len(text) >= promisedLine; text = text[promisedLine:] {
		hashPart := string(text[:hashPartLen])
		if text[hashPartLen] != '\n' || !isHashPart(hashPart) {
			return nil, errPromises
		}
		hashParts = append(hashParts, hashPart)
		r.offset += promisedLine
	}
	return hashParts, nil
}
