package proxy

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"nixbastion/internal/nix"
)

type recorder struct {
	mu       sync.Mutex
	messages []nix.LogMessage
}

func (r *recorder) Log(m nix.LogMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, m)
}

// Guards against a second client that attaches late and misses the log so far,
// and against messages lost where the log goes from memory to its file.
func TestEveryFollowerGetsTheWholeLog(t *testing.T) {
	const lines = 20_000
	log := newBuildLog(t.TempDir(), 0)
	defer log.free()
	early, late := &recorder{}, &recorder{}
	var wg sync.WaitGroup
	wg.Go(func() { log.follow(context.Background(), early, 0) })
	for i := range lines {
		log.Log(nix.LogMessage{Kind: nix.LogResult, ID: 7, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField(fmt.Sprint("line ", i))}})
	}
	wg.Go(func() { log.follow(context.Background(), late, 1000) })
	log.finish()
	wg.Wait()
	for _, r := range []*recorder{early, late} {
		if len(r.messages) != lines {
			t.Fatalf("a follower got %d of %d messages", len(r.messages), lines)
		}
		if got := r.messages[lines-1].Fields[0].Text; got != fmt.Sprint("line ", lines-1) {
			t.Errorf("last line is %q", got)
		}
	}
	if early.messages[0].ID != 7 || late.messages[0].ID != 1007 {
		t.Errorf("ids are %d and %d, want 7 and 1007", early.messages[0].ID, late.messages[0].ID)
	}
}

// Guards against a builder that fills our disk with its log.
func TestLogIsBoundedAndSaysSo(t *testing.T) {
	log := newBuildLog(t.TempDir(), 100_000)
	defer log.free()
	for range 10_000 {
		nix.Line(log, strings.Repeat("x", 100))
	}
	log.finish()
	var got recorder
	log.follow(context.Background(), &got, 0)
	if n := len(got.messages); n < 500 || n > 1000 {
		t.Errorf("%d messages of 100 bytes kept under a limit of 100,000 bytes", n)
	}
	if last := got.messages[len(got.messages)-1].Text; !strings.Contains(last, "not shown") {
		t.Errorf("last message is %q", last)
	}
}

// Guards against a waiter that hangs after its client has gone.
func TestFollowerEndsWithItsContext(t *testing.T) {
	log := newBuildLog(t.TempDir(), 0)
	defer log.free()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { log.follow(ctx, nix.Discard, 0); close(done) }()
	cancel()
	<-done
}

// Guards against progress bars that never end: a builder that is lost in the
// middle leaves activities open, and the next attempt uses the same ids again.
func TestActivitiesOfALostBuilderAreStopped(t *testing.T) {
	log := newBuildLog(t.TempDir(), 0)
	defer log.free()
	var next atomic.Uint64
	first := newAttemptLog(log, "b1", &next)
	first.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 5, Type: nix.ActivityRealise})
	first.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 6, Parent: 5, Type: nix.ActivityBuild,
		Fields: []nix.LogField{nix.TextField("/nix/store/x.drv"), nix.TextField(""), nix.IntField(1), nix.IntField(1)}})
	first.stopAll()
	second := newAttemptLog(log, "b2", &next)
	second.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 5, Type: nix.ActivityRealise})
	second.Log(nix.LogMessage{Kind: nix.LogStopActivity, ID: 5})
	second.Log(nix.LogMessage{Kind: nix.LogResult, ID: 99, Type: nix.ResultProgress}) // of no activity we know
	second.stopAll()
	log.finish()
	var got recorder
	log.follow(context.Background(), &got, 0)
	open := map[uint64]bool{}
	for _, m := range got.messages {
		switch m.Kind {
		case nix.LogStartActivity:
			if open[m.ID] {
				t.Errorf("activity %d started twice", m.ID)
			}
			open[m.ID] = true
			if m.Type == nix.ActivityBuild && m.Fields[1].Text != "b1" {
				t.Errorf("build activity names machine %q", m.Fields[1].Text)
			}
		case nix.LogStopActivity:
			delete(open, m.ID)
		case nix.LogResult:
			t.Errorf("result of the unknown activity %d passed", m.ID)
		}
	}
	if len(open) != 0 {
		t.Errorf("activities left open: %v", open)
	}
}

// Guards against clients that end at a result of an activity that they do not know, or
// show one for ever, when one of two copies of a build is left out.
func TestLogOfACopyIsShownWholeOrEnded(t *testing.T) {
	start := func(id uint64) nix.LogMessage {
		return nix.LogMessage{Kind: nix.LogStartActivity, ID: id, Type: nix.ActivityBuild}
	}
	line := func(id uint64, text string) nix.LogMessage {
		return nix.LogMessage{Kind: nix.LogResult, ID: id, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField(text)}}
	}
	stop := func(id uint64) nix.LogMessage { return nix.LogMessage{Kind: nix.LogStopActivity, ID: id} }
	for name, c := range map[string]struct {
		end  func(*attemptLog)
		want string
	}{
		"shown":   {(*attemptLog).show, "one two three four "},
		"dropped": {(*attemptLog).drop, "one "},
	} {
		t.Run(name, func(t *testing.T) {
			log := newBuildLog(t.TempDir(), 0)
			defer log.free()
			var next atomic.Uint64
			first := newAttemptLog(log, "b1", &next)
			first.Log(start(5))
			first.Log(line(5, "one "))
			first.hold()
			first.Log(line(5, "two "))
			first.Log(stop(5))
			first.Log(start(6))
			first.Log(line(6, "three "))
			c.end(first)
			first.Log(line(6, "four "))
			first.stopAll()
			log.finish()
			var got recorder
			log.follow(context.Background(), &got, 0)
			if text := checkActivities(t, got.messages); text != c.want {
				t.Errorf("shown is %q, want %q", text, c.want)
			}
		})
	}
}

// Guards against a builder that fills the memory with what nobody sees, and against
// what does not fit leaving a log that clients cannot read.
func TestLogThatIsHeldBackIsBounded(t *testing.T) {
	log := newBuildLog(t.TempDir(), 0)
	defer log.free()
	var next atomic.Uint64
	a := newAttemptLog(log, "b1", &next)
	line := func(id uint64, text string) {
		a.Log(nix.LogMessage{Kind: nix.LogResult, ID: id, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField(text)}})
	}
	a.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 5, Type: nix.ActivityBuild})
	a.hold()
	for range 100 {
		line(5, strings.Repeat("x", maxHeld/10))
	}
	for range maxHeld / 128 {
		a.Log(nix.LogMessage{Kind: nix.LogText}) // until nothing fits
	}
	if a.weight > maxHeld {
		t.Errorf("%d bytes are kept", a.weight)
	}
	a.Log(nix.LogMessage{Kind: nix.LogStopActivity, ID: 5})
	a.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 6, Type: nix.ActivityBuild})
	a.show()
	line(6, "of an activity that did not fit")
	a.stopAll()
	log.finish()
	var got recorder
	log.follow(context.Background(), &got, 0)
	if text := checkActivities(t, got.messages); len(text) != 9*(maxHeld/10) {
		t.Errorf("%d bytes are shown", len(text))
	}
}

// checkActivities returns the lines of a log in which each result has its activity and
// each activity has an end.
func checkActivities(t *testing.T, messages []nix.LogMessage) (text string) {
	t.Helper()
	open := map[uint64]bool{}
	for _, m := range messages {
		switch m.Kind {
		case nix.LogStartActivity:
			open[m.ID] = true
		case nix.LogStopActivity:
			if !open[m.ID] {
				t.Errorf("activity %d ends twice", m.ID)
			}
			delete(open, m.ID)
		case nix.LogResult:
			if !open[m.ID] {
				t.Errorf("a result of activity %d, which is not open", m.ID)
			}
			text += m.Fields[0].Text
		}
	}
	if len(open) > 0 {
		t.Errorf("activities left open: %v", open)
	}
	return text
}

// Guards against a log that is gone under whoever still reads it when its clients have
// left, and against one that stays for nobody.
func TestHeldLogIsKeptUntilItIsReleased(t *testing.T) {
	log := newBuildLog(t.TempDir(), 0)
	for range 2 {
		nix.Line(log, strings.Repeat("x", logTailSize)) // so that there is a file
	}
	log.finish()
	first, ok := log.hold()
	second, alsoOK := log.hold()
	if !ok || !alsoOK {
		t.Fatal("it cannot be held")
	}
	log.free()
	first()
	var got recorder
	if log.follow(context.Background(), &got, 0); len(got.messages) != 2 {
		t.Errorf("%d of 2 messages are left", len(got.messages))
	}
	second()
	if _, ok := log.hold(); ok || log.file != nil || log.tail != nil {
		t.Error("it is kept for nobody")
	}
}
