package upstream

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// unixPair returns the two ends of a connection.
func unixPair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); other.Close() })
	return conn.(*net.UnixConn), other.(*net.UnixConn)
}

// Guards against a daemon that goes on building: while it builds it waits for a
// hang-up and for nothing else, and the end of its input is none.
func TestHangUpReachesADaemonThatReadsNothing(t *testing.T) {
	for name, prepare := range map[string]func(near, far *net.UnixConn){
		"quiet":        func(_, _ *net.UnixConn) {},
		"unread input": func(near, _ *net.UnixConn) { near.Write(make([]byte, 100)) },
		"unread log":   func(_, far *net.UnixConn) { far.Write(make([]byte, 100)) },
	} {
		t.Run(name, func(t *testing.T) {
			near, far := unixPair(t)
			prepare(near, far)
			end, err := watchEnd(far)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan bool)
			go func() { done <- hangUp(t.Context(), near) }()
			if !end.await(t.Context()) {
				t.Fatal("no hang-up")
			}
			end.events.Close()
			select {
			case <-done:
				t.Fatal("seen to end before it ended")
			case <-time.After(20 * time.Millisecond): // killing a build takes that long
			}
			far.Close()
			if !<-done {
				t.Error("its end was not seen")
			}
		})
	}
}

// Guards against waiting for the end of what ended before.
func TestHangUpOfAClosedConnection(t *testing.T) {
	near, far := unixPair(t)
	far.Close()
	if !hangUp(t.Context(), near) {
		t.Error("its end was not seen")
	}
}

// Guards against an end that is made up when the time is over.
func TestHangUpGivesUp(t *testing.T) {
	near, _ := unixPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*idleGrace)
	defer cancel()
	if hangUp(ctx, near) {
		t.Error("an end was seen that was none")
	}
}
