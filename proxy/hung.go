package proxy

import (
	"fmt"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/proxy/upstream"
)

// A machine that stops, or the line to it, tells nobody: builds there would hang until
// keep-alive gives the connection up. Before that a second copy of each is begun
// elsewhere, and the first result counts. Which builds are copied is decided by the
// builder's silence alone: one that answers may build in silence for hours.

const (
	// hungPolls is how often, in the time after which a builder counts as hung, it is
	// looked at.
	hungPolls = 10
	// hungShare is for which part of that time it must have owed an answer: the
	// rest is what it takes to notice that it is silent and to ask.
	hungShare = 2.0 / 3
)

// watching is the look-out for a builder that hangs.
type watching struct{ quit, done chan struct{} }

// stop ends the look-out and waits for that.
func (w *watching) stop() {
	close(w.quit)
	<-w.done
}

// watchFor looks whether the builder of a session gives signs of life. With HungAfter
// 0 nobody looks.
func (t *attempt) watchFor(sess *upstream.Session) *watching {
	w := &watching{quit: make(chan struct{}), done: make(chan struct{})}
	after := t.policy.Current().Scheduling.HungAfter
	if after <= 0 {
		close(w.done)
		return w
	}
	go func() {
		defer close(w.done)
		t.watch(w, sess, after)
	}()
	return w
}

// watch tells run when the builder hangs, and when it lives again.
func (t *attempt) watch(w *watching, sess *upstream.Session, after time.Duration) {
	tick := time.NewTicker(max(after/hungPolls, time.Millisecond))
	defer tick.Stop()
	limit := time.Duration(float64(after) * hungShare)
	hung := false
	for {
		select {
		case <-w.quit:
			return
		case <-tick.C:
		}
		late := sess.Late()
		switch {
		case !hung && late >= limit:
			hung = true
			fault := sess.Hung(late)
			t.suspects.fault(sess.Builder(), fault.Reason(), faultWindow)
			t.postUnless(w.quit, func() { t.hangs(late) })
		case hung && late < limit:
			hung = false
			t.postUnless(w.quit, t.lives)
		}
	}
}

// postUnless posts an event, unless the attempt ends first: that is the event then.
func (t *attempt) postUnless(quit chan struct{}, event func()) {
	select {
	case t.events <- event:
	case <-t.over:
	case <-quit:
	}
}

// hangs has a second copy begun.
func (t *attempt) hangs(late time.Duration) {
	t.hung, t.hungOnce = true, true
	t.order.log.Warn("builder hangs", "builder", t.lease.Builder(), "drv", t.order.drvPath.String(),
		"phase", t.phase(), "silent", late.Seconds())
	nix.Line(t.tries.log, fmt.Sprintf("builder '%s' has given no sign of life for %s; a second copy of '%s' is begun elsewhere, and the first result counts",
		t.lease.Builder(), rounded(late), t.order.drvPath))
}

// lives ends the search for a second copy, unless it runs already.
func (t *attempt) lives() {
	t.hung = false
	t.order.log.Info("builder answers again", "builder", t.lease.Builder(), "drv", t.order.drvPath.String())
	nix.Line(t.tries.log, fmt.Sprintf("builder '%s' answers again", t.lease.Builder()))
	if t.stopSeek != nil {
		t.stopSeek()
	}
}
