package proxy

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// Guards against a restart that refuses those who waited for it, since they are more
// than may log in at once.
func TestAllWhoWaitedDuringARestartAreLetIn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, withLimits(Limits{Pending: 16, SlowLogin: time.Minute}))
	s.addr = l.Addr().String()
	var clients sync.WaitGroup
	conns := make([]net.Conn, 32)
	for i := range conns { // all wait in the queue
		if conns[i], err = net.Dial("tcp", s.addr); err != nil {
			t.Fatal(err)
		}
	}
	for _, conn := range conns {
		clients.Go(func() {
			client, err := clientOn(conn, s.config("nix", ssh.PublicKeys(testKey("alice"))))
			if err != nil {
				t.Errorf("log in: %v", err)
				return
			}
			client.Close()
		})
	}
	s.start(l)
	clients.Wait()
}

// Guards against connections that are taken from the queue while those before them have
// not come as far as to be counted, on a machine that is busy.
func TestThoseWhoArriveCountBeforeTheyLogIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const taken = 500 * time.Millisecond
		f := newSite(t, withLimits(Limits{Pending: 16})).front
		f.arriving.Store(8)
		time.AfterFunc(taken, func() { f.arriving.Store(7) })
		began := time.Now()
		b := &backlog{f: f, left: 2, ends: began.Add(backlogTime)}
		for range 2 {
			b.pace(t.Context())
		}
		if took := time.Since(began); took < taken || took > taken+5*time.Millisecond {
			t.Errorf("the next was taken after %s, want %s", took, taken)
		}
	})
}

// Guards against counting twice who logs in: half as many would be let in at a time.
func TestWhoLogsInDoesNotArriveAnyMore(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		conn := s.socketFrom("10.9.0.1")
		s.settle(nil)
		if arriving, waiting := s.front.arriving.Load(), s.front.room.size(); arriving != 0 || waiting != 1 {
			s.Errorf("%d arrive and %d log in", arriving, waiting)
		}
		conn.Close()
	})
}
