package proxy

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/route"
)

// spoken are the messages of a build's log, as its followers get them.
type spoken struct {
	mu  sync.Mutex
	all []nix.LogMessage
}

func (s *spoken) Log(m nix.LogMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, m)
}

// take returns what was said since the last call: "+id text" and "-id" for
// activities, else the text.
func (s *spoken) take() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var said strings.Builder
	for _, m := range s.all {
		switch m.Kind {
		case nix.LogStartActivity:
			fmt.Fprintf(&said, "+%d:%d %s\n", m.ID-firstWaitID, m.Type, m.Text)
		case nix.LogStopActivity:
			fmt.Fprintf(&said, "-%d\n", m.ID-firstWaitID)
		default:
			said.WriteString(m.Text)
		}
	}
	s.all = nil
	return said.String()
}

// Guards against clients that do not see why they wait, see what is over, or are
// flooded with every step of a long queue.
func TestWaitingIsShownAndSaidAsItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, heard := newBuildLog(t.TempDir(), 0), &spoken{}
		followed := make(chan struct{})
		go func() {
			defer close(followed)
			log.follow(context.Background(), heard, 0)
		}()
		path := labPath("hello.drv")
		want := func(lines string) {
			t.Helper()
			synctest.Wait()
			lines = strings.ReplaceAll(lines, "DRV", "'"+path.String()+"'")
			if got := heard.take(); got != lines {
				t.Errorf("heard\n%s\nwant\n%s", got, lines)
			}
		}
		busy := []route.BuilderReason{{Name: "b1", Reason: "1/1 busy"}}
		w := newWaitLines(log, path)
		w.waiting(route.Waiting{Ahead: 3, Builders: busy})
		want("+1:111 waiting for a machine to build DRV: 3 ahead; b1 1/1 busy\nDRV waiting: 3 ahead; b1 1/1 busy\n")
		w.waiting(route.Waiting{Ahead: 2, Builders: busy})
		w.waiting(route.Waiting{Ahead: 1, Builders: busy})
		want("")
		time.Sleep(waitShowInterval)
		want("-1\n+2:111 waiting for a machine to build DRV: 1 ahead; b1 1/1 busy\n")
		time.Sleep(waitLineInterval)
		want("DRV waiting: 1 ahead; b1 1/1 busy\n")
		time.Sleep(time.Hour)
		want("")
		w.waiting(route.Waiting{Builders: busy})
		w.waiting(route.Waiting{Ahead: 1, Builders: busy})
		want("-2\n+3:111 waiting for a machine to build DRV: next in the queue; b1 1/1 busy\nDRV waiting: next in the queue; b1 1/1 busy\n")
		time.Sleep(24 * time.Hour) // since nobody looks any more
		w.waiting(route.Waiting{Ahead: 7})
		heard.take()
		for i := range 3600 {
			w.waiting(route.Waiting{Ahead: i})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if got := strings.Count(heard.take(), "\n"); got > 3*3 {
			t.Errorf("%d messages in an hour after a day", got)
		}
		w.waiting(route.Waiting{})
		time.Sleep(time.Hour)
		synctest.Wait()
		heard.take()
		w.stop()
		synctest.Wait()
		if got := heard.take(); !strings.HasPrefix(got, "-") || strings.Count(got, "\n") != 1 {
			t.Errorf("at the end heard %q", got)
		}
		time.Sleep(time.Hour)
		want("")
		log.finish()
		<-followed
	})
}

// Guards against an activity that goes on while the build runs, and ids that another
// activity has.
func TestWaitingEndsWhereTheBuildBegins(t *testing.T) {
	b := newLabBuilder("b1")
	release := make(chan struct{})
	wait := held(release)
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		log.Log(nix.LogMessage{Kind: nix.LogStartActivity, ID: 7, Type: nix.ActivityBuild, Text: "building", Fields: []nix.LogField{
			{IsText: true, Text: "drv"}, {IsText: true}, {}, {},
		}})
		return wait(ctx, b, log, drv)
	}
	l := newLab(t, b)
	first := l.begin("alice", "first")
	eventually(t, "it runs", func() bool { return len(b.built()) == 1 })
	heard, ended := &spoken{}, make(chan error, 1)
	bob := l.client("bob")
	go func() {
		_, err := bob.build(t.Context(), heard, "second")
		ended <- err
	}()
	eventually(t, "the second waits", func() bool { return len(l.proxy.router.Status().Queue) == 1 })
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	open, waited := map[uint64]uint64{}, 0
	for _, m := range heard.all {
		switch m.Kind {
		case nix.LogStartActivity:
			if _, twice := open[m.ID]; twice {
				t.Errorf("id %d is begun twice", m.ID)
			}
			open[m.ID] = m.Type
			if m.Type == nix.ActivityBuildWaiting {
				waited++
			}
			if m.Type == nix.ActivityBuild && (m.Fields[1].Text != "b1" || len(open) != 1) {
				t.Errorf("the build begins on %q, with %v open", m.Fields[1].Text, open)
			}
		case nix.LogStopActivity:
			delete(open, m.ID)
		}
	}
	if waited == 0 || len(open) > 0 {
		t.Errorf("%d times waited, %v still open", waited, open)
	}
}
