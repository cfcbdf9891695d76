package proxy

import (
	"context"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// drain drains in the background, once nothing is accepted any more.
func (s *site) drain(ctx context.Context, d Draining) <-chan struct{} {
	s.front.mu.Lock()
	for l := range s.front.listeners {
		l.Close()
	}
	s.front.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.front.Drain(ctx, d)
	}()
	s.settle(nil)
	return done
}

// Guards against builds that fail since the proxy restarts: what was let in before is
// served, in its login, before its first session and between two of them.
func TestDrainServesWhoWasLetIn(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		silent := s.socket() // has not said who it is
		idle := s.login("nix", testKey("alice"))
		late := newRaw(s)
		working := s.login("nix", testKey("alice"))
		ch, requests := s.channel(working)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("wait"))
		s.settle(nil)
		done := s.drain(context.Background(), Draining{Idle: time.Minute})

		key := testKey("alice")
		if got := late.signIn(s, "nix", key.PublicKey(), key); got[0] != msgAuthSuccess {
			s.Errorf("a client in its login got message %d", got[0])
		}
		s.works(idle)
		time.Sleep(drainLinger - time.Second)
		s.works(idle) // a second session
		if got := ends(idle); got < drainLinger {
			s.Errorf("a connection without a session ended %s after the last one", got)
		}
		s.works(working)
		closedAfter(silent) // at the end of the time for a login
		time.Sleep(time.Hour)
		if isDone(done) {
			s.Fatal("the front did not wait for a command")
		}
		ch.Close()
		<-done
		if n := s.held().conns; n != 0 {
			s.Errorf("%d connections are left", n)
		}
		if err := s.shutDown(time.Second); err != nil {
			s.Errorf("shutdown: %v", err)
		}
	})
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Guards against a drain that is longer than the admin allows, and against one that cuts
// what runs itself, without a reason to the client.
func TestDrainEndsWithItsTime(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		working := s.login("nix", testKey("alice"))
		ch, requests := s.channel(working)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("finish"))
		s.settle(nil)
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		begin := time.Now()
		<-s.drain(ctx, Draining{Idle: time.Minute})
		s.about("drained", time.Since(begin), time.Hour)
		s.works(working)
		if err := s.shutDown(time.Minute); err != nil {
			s.Errorf("shutdown: %v", err)
		}
	})
}

// Guards against a restart that waits for people who left a shell open, and against an
// upgrade that ends their shells.
func TestOnlyAnUpgradeWaitsForJumps(t *testing.T) {
	for _, waits := range []bool{false, true} {
		jumping(t, Limits{}, func(s *site, f *far) {
			client := s.login("nix", testKey("alice"))
			jumped, end := f.open(s, client)
			s.settle(nil)
			done := s.drain(context.Background(), Draining{Idle: time.Minute, Jumps: waits})
			time.Sleep(time.Minute)
			if isDone(done) == waits {
				s.Errorf("jumps are waited for: %v, and the drain is over: %v", waits, !waits)
			}
			if _, err := jumped.Write([]byte("x")); err != nil {
				s.Errorf("the jump was ended: %v", err)
			}
			end.Close()
			jumped.Close()
			<-done
		})
	}
}
