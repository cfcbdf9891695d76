package world

import (
	"context"
	"testing"
	"testing/synctest"
)

// Guards against lines that are lost or torn where two writes meet, and against
// a waiter that is not woken.
func TestWaitLineSeesWhatComesInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{log: newJournal(), ended: make(chan struct{})}
		found := make(chan Line)
		go func() {
			l, err := p.WaitLine(context.Background(), 0, Message("built", "drv", "-b.drv"))
			if err != nil {
				t.Error(err)
			}
			found <- l
		}()
		for _, piece := range []string{`{"msg":"built","drv":"x-a.drv"}` + "\n{\"msg\":", `"built","drv":"x-b`, ".drv\",\"n\":7}\nno JSON", "\n"} {
			synctest.Wait()
			p.log.Write([]byte(piece))
		}
		if l := <-found; l.Text("n") != "7" {
			t.Errorf("found %q", l.Raw)
		}
		if lines := p.LinesSince(0); len(lines) != 3 || lines[2].Raw != "no JSON" || lines[2].Msg != "" {
			t.Errorf("lines are %q", lines)
		}
	})
}

// Guards against waiting for a line of a program that has ended, and against
// missing its last one.
func TestWaitLineEndsWithTheProgram(t *testing.T) {
	p := &Proxy{log: newJournal(), ended: make(chan struct{})}
	p.log.Write([]byte(`{"msg":"last words"}` + "\n"))
	close(p.ended)
	if _, err := p.WaitLine(t.Context(), 0, Message("last words")); err != nil {
		t.Error(err)
	}
	if _, err := p.WaitLine(t.Context(), 0, Message("never said")); err == nil {
		t.Error("found a line that was not written")
	}
}
