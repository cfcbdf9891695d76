package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// patience is how long nothing may be printed while something is still done.
const patience = 15 * time.Second

// A progress tells the reader about slow steps and that they go on. It takes the
// log of the testbed, which is silent where everything is there already.
type progress struct {
	page *page

	steps         chan string
	stop, stopped chan struct{}
}

// startProgress begins to tell; the caller calls end.
func startProgress(p *page) *progress {
	w := &progress{page: p, steps: make(chan string), stop: make(chan struct{}), stopped: make(chan struct{})}
	go w.tell()
	return w
}

// end returns when nothing more will be printed.
func (w *progress) end() {
	close(w.stop)
	<-w.stopped
}

func (w *progress) tell() {
	defer close(w.stopped)
	step, since := "start the machines", time.Now()
	silence := time.NewTicker(patience)
	defer silence.Stop()
	for first := true; ; {
		select {
		case <-w.stop:
			return
		case step = <-w.steps:
			if first {
				w.page.gap()
				w.page.text("First, and once on this machine, it gets what the five need: a small Debian for each version of Nix, in %s.", cacheDir())
				w.page.gap()
				first = false
			}
			since = time.Now()
			silence.Reset(patience)
			w.page.quote(step)
		case <-silence.C:
			w.page.quote(fmt.Sprintf("  (still at it after %.0f s: %s)", time.Since(since).Seconds(), step))
		}
	}
}

// log is what the testbed writes to.
func (w *progress) log() *slog.Logger { return slog.New(w) }

// Enabled is for slog: what is for programmers is left out.
func (w *progress) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle is for slog.
func (w *progress) Handle(_ context.Context, r slog.Record) error {
	var details []string
	r.Attrs(func(a slog.Attr) bool {
		details = append(details, fmt.Sprintf("%s %v", a.Key, a.Value))
		return true
	})
	step := r.Message
	if details != nil {
		step += " (" + strings.Join(details, ", ") + ")"
	}
	select {
	case w.steps <- step:
	case <-w.stopped:
	}
	return nil
}

// WithAttrs is for slog; the testbed has no use for it.
func (w *progress) WithAttrs([]slog.Attr) slog.Handler { return w }

// WithGroup is for slog; the testbed has no use for it.
func (w *progress) WithGroup(string) slog.Handler { return w }
