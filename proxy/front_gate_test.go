package proxy

import (
	"testing"
	"testing/synctest"
	"time"
)

// passesAfter says after how long the gate lets somebody through.
func passesAfter(g *readGate) time.Duration {
	start := time.Now()
	g.pass()
	return time.Since(start)
}

// Guards against a gate that opens under a sender, or never again.
func TestGateHoldsBackWhileAnybodySends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g readGate
		if took := passesAfter(&g); took != 0 {
			t.Errorf("the open gate took %s", took)
		}
		g.hold()
		g.hold()
		time.AfterFunc(100*time.Millisecond, g.release)
		time.AfterFunc(300*time.Millisecond, g.release)
		if took := passesAfter(&g); took != 300*time.Millisecond {
			t.Errorf("passed after %s, want when the last sender is through", took)
		}
		if took := passesAfter(&g); took != 0 {
			t.Errorf("the gate stayed shut for %s", took)
		}
	})
}

// Guards against a sender that waits for what the gate holds back, as for the rest
// of a key exchange.
func TestGateGivesUpOnSendersThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g readGate
		g.hold()
		if took := passesAfter(&g); took != gateLimit {
			t.Errorf("passed after %s, want %s", took, gateLimit)
		}
		g.release()
	})
}
