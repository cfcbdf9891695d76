package proxy

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/route"
)

const (
	// waitLineInterval is how often a waiting client gets a line at most, and
	// waitShowInterval how often what its progress bar shows is changed. Both grow to
	// a part of the time that it has waited, or the log of a build that waits for a
	// day would be full when it begins.
	waitLineInterval = 5 * time.Second
	waitShowInterval = time.Second
	waitPart         = 60
	// firstWaitID is where the activity ids of waiting begin: those of builders come
	// from one upwards.
	firstWaitID = 1 << 31
	// waitLevel keeps clients without a progress bar from printing the activity
	// (it is Nix's "talkative"): they have the line. Progress bars show all.
	waitLevel = 4
)

// waitLines tells clients why their build waits: as an activity, which Nix's own
// build hook starts too when no machine is free and progress bars show, and as lines
// for those who have none. Both begin at once and follow what changes, not at every
// step of a long queue.
type waitLines struct {
	log     *buildLog
	drvPath nix.StorePath

	mu     sync.Mutex // guards what follows; held while the log is written
	since  time.Time
	over   bool
	state  string
	showed string // as an activity
	said   string // as a line
	// showAt and sayAt are when the next may come.
	showAt, sayAt time.Time
	id            uint64 // 0 if no activity is open
	timer         *time.Timer
}

// newWaitLines tells nothing before waiting is called. Stop must be called.
func newWaitLines(log *buildLog, drvPath nix.StorePath) *waitLines {
	return &waitLines{log: log, drvPath: drvPath, since: time.Now()}
}

// waiting takes news.
func (w *waitLines) waiting(state route.Waiting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = state.String()
	w.tell()
}

// stop ends the activity: the wait is over.
func (w *waitLines) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	if w.timer != nil {
		w.timer.Stop()
	}
	w.hide()
}

// tell says what is new and may be said by now, and has the rest said when it may.
// The caller holds mu.
func (w *waitLines) tell() {
	now := time.Now()
	if w.state != w.showed && !now.Before(w.showAt) {
		w.show()
		w.showed, w.showAt = w.state, now.Add(max(waitShowInterval, now.Sub(w.since)/waitPart))
	}
	if w.state != w.said && !now.Before(w.sayAt) {
		nix.Line(w.log, fmt.Sprintf("'%s' %s", w.drvPath, w.state))
		w.said, w.sayAt = w.state, now.Add(max(waitLineInterval, now.Sub(w.since)/waitPart))
	}
	switch {
	case w.state != w.showed:
		w.tellAfter(w.showAt.Sub(now))
	case w.state != w.said:
		w.tellAfter(w.sayAt.Sub(now))
	}
}

func (w *waitLines) tellAfter(pause time.Duration) {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.timer = time.AfterFunc(pause, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.over {
			w.tell()
		}
	})
}

// show starts an activity in the place of the one before.
func (w *waitLines) show() {
	w.hide()
	w.id = w.log.waitID()
	w.log.Log(nix.LogMessage{
		Kind: nix.LogStartActivity, ID: w.id, Level: waitLevel, Type: nix.ActivityBuildWaiting,
		Text: fmt.Sprintf("waiting for a machine to build '%s': %s", w.drvPath, strings.TrimPrefix(w.state, "waiting: ")),
	})
}

func (w *waitLines) hide() {
	if w.id != 0 {
		w.log.Log(nix.LogMessage{Kind: nix.LogStopActivity, ID: w.id})
		w.id = 0
	}
}
