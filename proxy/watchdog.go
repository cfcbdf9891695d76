package proxy

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"nixbastion/internal/nix"
)

// limitError ends a build that exceeded one of its limits. It is an answer: no
// other builder is tried.
type limitError struct {
	status nix.BuildStatus
	text   string
}

func (e *limitError) Error() string { return e.text }

// watchdog keeps one attempt at a build within its limits, over either protocol: what
// the builder was told, it may not have understood. It stands in the way of the
// builder's log messages and ends the context of the build, in Nix's own words.
type watchdog struct {
	limits  buildLimits
	drvPath nix.StorePath
	to      nix.Logger
	end     context.CancelCauseFunc

	silence, deadline *time.Timer // nil without that limit
	logged            atomic.Uint64
}

// watch begins when the builder is asked to build, so that the wait for a builder
// and the way of the inputs do not count. Stop it.
func watch(ctx context.Context, o *order, to nix.Logger) (context.Context, *watchdog) {
	ctx, end := context.WithCancelCause(ctx)
	w := &watchdog{limits: o.limits, drvPath: o.drvPath, to: to, end: end}
	if w.limits.MaxSilent > 0 {
		w.silence = time.AfterFunc(w.limits.MaxSilent, func() {
			w.exceed(silence)
		})
	}
	if w.limits.Timeout > 0 {
		w.deadline = time.AfterFunc(w.limits.Timeout, func() {
			w.exceed(deadline)
		})
	}
	return ctx, w
}

func (w *watchdog) exceed(which int) {
	e := w.limits.all()[which]
	w.end(&limitError{e.status, fmt.Sprintf("building of '%s' %s (%s)", w.drvPath, e.words, e.whose())})
}

// stop ends the watch. Its context is of no use afterwards.
func (w *watchdog) stop() {
	for _, timer := range []*time.Timer{w.silence, w.deadline} {
		if timer != nil {
			timer.Stop()
		}
	}
	w.end(nil)
}

// Log counts what the builder prints and hands it on.
func (w *watchdog) Log(m nix.LogMessage) {
	if n := printed(m); n > 0 {
		w.count(n)
	}
	w.to.Log(m)
}

func (w *watchdog) count(n uint64) {
	if w.silence != nil {
		w.silence.Reset(w.limits.MaxSilent)
	}
	if limit := w.limits.MaxLogSize; w.logged.Add(n) > limit && limit > 0 {
		w.exceed(logSize)
	}
}

// printed is how many bytes of a build's own output a message stands for.
func printed(m nix.LogMessage) uint64 {
	switch {
	case m.Kind == nix.LogText:
		return uint64(len(m.Text))
	case m.Kind != nix.LogResult || len(m.Fields) == 0:
	case m.Type == nix.ResultBuildLogLine || m.Type == nix.ResultPostBuildLogLine || m.Type == nix.ResultSetPhase:
		return uint64(len(m.Fields[0].Text)) + 1 // the newline
	}
	return 0
}
