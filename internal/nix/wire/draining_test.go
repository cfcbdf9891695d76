package wire

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// Guards against a server that drops a client in the pause between two requests since
// it is about to restart, and against one that a silent client keeps for ever.
func TestDrainingEndsOnlyWhoAsksForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		r := NewReader(far)
		begun := make(chan struct{})
		drain := Draining{Begun: begun, Idle: func() time.Duration { return time.Minute }}
		more := make(chan bool)
		next := func() { more <- r.MoreUntil(nil, drain) }

		go next()
		time.Sleep(time.Hour) // nothing drains yet
		close(begun)
		time.Sleep(59 * time.Second)
		go near.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
		if !<-more {
			t.Fatal("a client was dropped that asked for something in time")
		}
		if got := r.Uint64(); got != 1 {
			t.Fatalf("read %d", got)
		}
		time.Sleep(time.Hour) // the request takes that long
		start := time.Now()
		go next()
		if <-more {
			t.Error("a client that asks for nothing was kept")
		}
		if got := time.Since(start); got != time.Minute {
			t.Errorf("it was dropped after %s", got)
		}
	})
}
