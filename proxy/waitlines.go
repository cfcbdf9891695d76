package proxy

import (
	"fmt"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/route"
)

// waitLineInterval is how often a waiting client is told of its place at most.
const waitLineInterval = 5 * time.Second

// waitLines tells clients why their build waits: at once when it has to, and
// then when something changed, though not at every step of a long queue.
type waitLines struct {
	log     nix.Logger
	drvPath nix.StorePath
	last    time.Time
}

func newWaitLines(log nix.Logger, drvPath nix.StorePath) *waitLines {
	return &waitLines{log: log, drvPath: drvPath}
}

func (w *waitLines) waiting(state route.Waiting) {
	now := time.Now()
	if now.Sub(w.last) < waitLineInterval {
		return
	}
	w.last = now
	nix.Line(w.log, fmt.Sprintf("'%s' %s", w.drvPath, state))
}
