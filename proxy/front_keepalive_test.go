package proxy

import (
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// rawLogin is a raw client that has logged in.
func rawLogin(s *site) *rawClient {
	s.Helper()
	c := newRaw(s)
	alice := testKey("alice")
	if reply := c.signIn(s, "nix", alice.PublicKey(), alice); reply[0] != msgAuthSuccess {
		s.Fatalf("login answered with message %d", reply[0])
	}
	return c
}

// givenUp expects the end of a connection whose peer fell silent: up to two pauses of
// 15 s until the question, three for the answer.
func (s *site) givenUp(c *rawClient) {
	s.Helper()
	if took := closedAfter(c.conn); took < time.Minute || took > 76*time.Second {
		s.Errorf("closed after %s, want between 60 and 75 s", took)
	}
}

// Guards against connections of peers that are gone.
func TestSilentPeerIsGivenUp(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := rawLogin(s)
		s.givenUp(c)
		s.logged("ssh connection ended", "principal", "alice", "reason", "no sign of life for 1m0s")
	})
}

// Guards against the same while a command runs: its context ends with the peer.
func TestCommandOfASilentPeerEnds(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := rawLogin(s)
		c.must(s, &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10})
		c.next(s)
		c.must(s, &channelRequest{Type: "exec", Payload: text("wait")})
		s.givenUp(c)
		if s.held().sessions != 0 {
			s.Error("the session of a peer that is gone lives on")
		}
	})
}

// Guards against cutting idle clients that do answer. A master of OpenSSH may sit
// for hours between sessions.
func TestIdlePeerThatAnswersStays(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		s.works(client)
		time.Sleep(6 * time.Hour)
		s.works(client)
	})
}

// Guards against taking a refusal for silence: most clients do not know the
// request.
func TestRefusedKeepAliveIsASignOfLife(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := rawLogin(s)
		start := time.Now()
		asked := 0
		for time.Since(start) < 5*time.Minute {
			packet := c.next(s)
			var msg struct {
				Type string `sshtype:"80"`
				Want bool
				Rest []byte `ssh:"rest"`
			}
			if err := ssh.Unmarshal(packet, &msg); err != nil || msg.Type != "keepalive@openssh.com" || !msg.Want {
				s.Fatalf("got %q (%v), want a keep-alive that wants an answer", packet, err)
			}
			asked++
			c.must(s, struct {
				Empty []byte `sshtype:"82" ssh:"rest"`
			}{})
		}
		if asked < 9 || asked > 21 {
			s.Errorf("asked %d times in 5 minutes", asked)
		}
	})
}

// Guards against an upload over a slow line, behind which the answers are queued.
func TestAnyByteIsASignOfLife(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := rawLogin(s)
		c.must(s, &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10})
		c.next(s)
		c.must(s, &channelRequest{Type: "exec", Payload: text("digest")})
		for range 40 {
			time.Sleep(14 * time.Second)
			c.must(s, struct {
				Channel uint32 `sshtype:"94"`
				Data    []byte
			}{0, []byte("x")})
		}
	})
}

// Guards against connections that are opened and forgotten.
func TestConnectionThatIsNeverUsedIsClosed(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		s.about("closed", ends(client), 10*time.Minute)
		s.logged("ssh connection ended", "reason", "never used")
	})
}
