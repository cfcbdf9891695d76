package proxy

import (
	"net"
	"sync"
	"testing"
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
