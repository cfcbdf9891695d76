package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"nixbastion/route"
)

const (
	// learnedFile is where the router's estimates outlive the proxy.
	learnedFile = "estimates.json"
	// learnedPause is how often they are written, if they changed.
	learnedPause = time.Minute
	// learnedLimit is the size from which on such a file is not ours, in bytes.
	learnedLimit = 64 << 20
)

// learned keeps the router's estimates in a file. Without it, or with one that
// cannot be read, everything works and is guessed anew.
type learned struct {
	path string
	log  *slog.Logger

	mu    sync.Mutex  // held while the file is written
	given atomic.Bool // another process has it
}

func newLearned(dir string, log *slog.Logger) *learned {
	return &learned{path: filepath.Join(dir, learnedFile), log: log}
}

// load returns what was kept; nothing if there is nothing.
func (l *learned) load() route.History {
	h, err := l.read()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Warn("estimates of builds cannot be read and are learned anew", "file", l.path, "error", err)
	}
	return h
}

func (l *learned) read() (h route.History, err error) {
	f, err := os.Open(l.path)
	if err != nil {
		return h, err
	}
	defer f.Close()
	err = json.NewDecoder(io.LimitReader(f, learnedLimit)).Decode(&h)
	if err != nil {
		return route.History{}, err
	}
	return h, nil
}

// keep writes the estimates now and then, and once more when ctx ends.
func (l *learned) keep(ctx context.Context, router *route.Router) {
	tick := time.NewTicker(learnedPause)
	defer tick.Stop()
	var last []byte
	for ended := false; !ended; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ended = true
		}
		last = l.write(router, last)
	}
}

// write replaces the file unless it has the last text already, and returns its text.
func (l *learned) write(router *route.Router, last []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.given.Load() {
		return last
	}
	text, err := json.Marshal(router.History())
	if err == nil && string(text) != string(last) {
		err = replaceFile(l.path, text)
	}
	if err != nil {
		l.log.Warn("estimates of builds cannot be kept", "file", l.path, "error", err)
	}
	return text
}

// give writes the file for another process, whose it is from now on.
func (l *learned) give(router *route.Router) {
	l.write(router, nil)
	l.given.Store(true)
}
