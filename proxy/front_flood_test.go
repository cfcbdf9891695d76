package proxy

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// refusedFor opens a session that must be refused for a reason.
func (s *site) refusedFor(client *ssh.Client, want ssh.RejectionReason) *ssh.OpenChannelError {
	s.Helper()
	_, _, err := client.OpenChannel("session", nil)
	var refusal *ssh.OpenChannelError
	if !errors.As(err, &refusal) || refusal.Reason != want {
		s.Fatalf("session: %v, want it refused with %v", err, want)
	}
	return refusal
}

// Guards against G7: channels without number on one connection.
func TestSixtyFifthSessionIsRefusedForWantOfResources(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		var last ssh.Channel
		for range 64 {
			ch, requests := s.channel(client)
			go ssh.DiscardRequests(requests)
			s.request(ch, "exec", text("wait"))
			last = ch
		}
		s.refusedFor(client, ssh.ResourceShortage)
		s.works(s.login("nix", testKey("alice")))
		last.Close()
		s.settle(nil)
		s.works(client)
	})
}

// Guards against opening and closing in a loop, each time at the cost of a
// goroutine and a log line.
func TestChannelFloodEndsTheConnection(t *testing.T) {
	for _, kind := range []string{"session", "direct-tcpip"} {
		t.Run(kind, func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				client := s.login("nix", testKey("alice"))
				opened, refused := 0, 0
				for range 5000 {
					ch, _, err := client.OpenChannel(kind, nil)
					var refusal *ssh.OpenChannelError
					switch {
					case err == nil:
						opened++
						ch.Close()
						continue
					case errors.As(err, &refusal):
						refused++
						continue
					}
					break
				}
				if opened > 200 || opened+refused != 1000 {
					s.Errorf("%d channels opened and %d refused, want at most 200 and 1000 in all", opened, refused)
				}
				s.logged("ssh connection ended", "reason", "flood of channels", "principal", "alice")
			})
		})
	}
}

// Guards against refusals that pile up, with 256 KiB of the peer's data each,
// because the peer does not read them.
func TestUnreadRefusalsEndTheConnection(t *testing.T) {
	inMemory(t, withLimits(Limits{OpensPer10s: 100, KeepAlive: time.Hour}), func(s *site) {
		c := rawLogin(s)
		c.conn.(*memConn).in.shrink(1 << 10)
		s.stuff(c)
		for i := range 490 { // 500 in 10 s would be a flood
			open := &channelOpen{Type: "x", Channel: uint32(i), MaxPacket: 32 << 10, Window: 1 << 20, Data: make([]byte, 100_000)}
			if err := c.write(ssh.Marshal(open)); err != nil {
				break
			}
		}
		c.conn.Close()
		s.logged("ssh connection ended", "principal", "alice", "reason", "refusals")
	})
}

// stuff lets the front write more than the peer reads, so that its writes stand
// still before long.
func (s *site) stuff(c *rawClient) {
	s.Helper()
	c.must(s, &channelOpen{Type: "session", Window: 1 << 30, MaxPacket: 32 << 10})
	c.next(s)
	c.must(s, &channelRequest{Type: "exec", Payload: text("pour")})
}

// Guards against requests on end, on the connection or on a session that runs.
func TestRequestFloodEndsTheConnection(t *testing.T) {
	for name, flood := range map[string]func(s *site, client *ssh.Client, n int) error{
		"global": func(_ *site, client *ssh.Client, n int) error {
			_, _, err := client.SendRequest("x", n%2 == 0, nil)
			return err
		},
		"of a session": func() func(s *site, client *ssh.Client, n int) error {
			var ch ssh.Channel
			return func(s *site, client *ssh.Client, n int) error {
				if n == 0 {
					ch, _ = s.channel(client)
					s.request(ch, "exec", text("wait"))
				}
				_, err := ch.SendRequest("window-change", n%2 == 0, nil)
				return err
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				client := s.login("nix", testKey("alice"))
				sent := 0
				for sent < 20_000 && flood(s, client, sent) == nil {
					sent++
				}
				if sent < 900 || sent > 1500 {
					s.Errorf("the connection ended after %d requests, want about 1000", sent)
				}
				s.logged("ssh connection ended", "reason", "flood of requests")
			})
		})
	}
}

// Guards against ordinary keep-alives being taken for a flood.
func TestSteadyRequestsAreNoFlood(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		for range 3000 {
			time.Sleep(50 * time.Millisecond)
			if _, _, err := client.SendRequest("keepalive@openssh.com", true, nil); err != nil {
				s.Fatal(err)
			}
		}
	})
}

// Guards against G9: sockets that trickle bytes. Each is cut by the clock that
// runs from accept, and meanwhile an honest client gets in at once.
func TestTricklingSocketsKeepNobodyOut(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		var wg sync.WaitGroup
		ended := make([]time.Duration, 300)
		for i := range ended {
			conn := s.socketFrom(fmt.Sprintf("10.2.%d.1", i%3))
			go io.Copy(io.Discard, conn)
			start := time.Now()
			wg.Go(func() {
				for {
					time.Sleep(500 * time.Millisecond)
					if _, err := conn.Write([]byte("S")); err != nil {
						ended[i] = time.Since(start)
						return
					}
				}
			})
			time.Sleep(20 * time.Millisecond)
		}
		for range 30 {
			s.works(s.login("nix", testKey("alice")))
			if n := s.held().waiting; n > 100 {
				s.Errorf("%d connections wait for a login, want at most 100", n)
			}
			time.Sleep(200 * time.Millisecond)
		}
		wg.Wait()
		for _, took := range ended {
			if took > 21*time.Second {
				s.Errorf("a trickling socket lived for %s", took)
			}
		}
	})
}

// Guards against G10: a library that clears our deadlines at each read. The grace
// must hold while bytes come and go.
func TestTrafficDoesNotExtendTheLogin(t *testing.T) {
	inMemory(t, withLimits(Limits{AuthTries: 1000}), func(s *site) {
		c := newRaw(s)
		start := time.Now()
		for {
			time.Sleep(time.Second)
			if c.write(ssh.Marshal(offerOf("x", testKey("stranger").PublicKey()))) != nil {
				break
			}
			if _, err := c.read(); err != nil {
				break
			}
		}
		s.about("closed", time.Since(start), 20*time.Second)
	})
}

// Guards against memory for strangers: x/crypto queues 16 packets of 256 KiB.
func TestStrangersMaySendOnlySoMuch(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := newRaw(s)
		sent := 0
		for sent < 100 && c.write(append([]byte{2}, make([]byte, 30_000)...)) == nil { // SSH_MSG_IGNORE
			sent++
		}
		if sent > 15 {
			s.Errorf("%d packets of 30 kB were taken from a stranger", sent)
		}
		s.logged("ssh handshake failed", "addr", "10.1.0.1", "reason", "too much before the login")
	})
}

// Guards against a peer that stops reading: without end it would hold the
// command, its builder's session and all that was read ahead for it.
func TestWriteThatStandsStillEndsTheConnection(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("pour")) // nobody reads ch: the window fills
		s.about("connection closed", ends(client), 120*time.Second)
		s.logged("ssh connection ended", "reason", "client read nothing for 2m0s")
	})
}

// Guards against the same below the windows: the socket is not read.
func TestSocketThatIsNotReadEndsTheConnection(t *testing.T) {
	inMemory(t, withLimits(Limits{KeepAlive: time.Hour}), func(s *site) {
		c := rawLogin(s)
		s.stuff(c)
		s.about("connection closed", s.chatters(c), 120*time.Second)
		s.logged("ssh connection ended", "reason", "client read nothing for 2m0s")
	})
}

// Guards against replies that nobody reads, where no command is in the way, and
// against G10 again: the library clears deadlines at each read, and the peer goes
// on sending.
func TestUnreadRepliesEndTheConnection(t *testing.T) {
	inMemory(t, withLimits(Limits{KeepAlive: time.Hour}), func(s *site) {
		c := rawLogin(s)
		c.conn.(*memConn).in.shrink(1 << 10)
		for range 50 {
			c.must(s, struct {
				Type string `sshtype:"80"`
				Want bool
			}{"x", true})
			s.settle(nil)
		}
		s.about("connection closed", s.chatters(c), 120*time.Second)
		s.logged("ssh connection ended", "reason", "client read nothing for 2m0s")
	})
}

// chatters sends what needs no answer, and reads nothing, until the connection
// ends. It returns after how long that was.
func (s *site) chatters(c *rawClient) time.Duration {
	start := time.Now()
	for time.Since(start) < time.Hour && c.write([]byte{2, 0, 0, 0, 0}) == nil {
		time.Sleep(time.Second)
	}
	return time.Since(start)
}

// Guards against a slow reader that is taken for one that stopped.
func TestSlowReaderIsNotCut(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("pour"))
		for range 40 {
			time.Sleep(100 * time.Second)
			if _, err := io.ReadFull(ch, make([]byte, 128<<10)); err != nil {
				s.Fatalf("cut: %v", err)
			}
		}
		client.Close()
	})
}

// Guards against a place that is not given back, on any way to fail.
func TestEveryPlaceIsGivenBack(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		for i := range 50 {
			switch i % 5 {
			case 0:
				s.dial("x", testKey("stranger"))
			case 1:
				s.socket().Close()
			case 2:
				s.saying("SSH-2.0-x\r\n" + strings.Repeat("\xff", 100)).Close()
			case 3:
				client := s.login("nix", testKey("alice"))
				s.channel(client)
				client.Close()
			case 4:
				client := s.login("nix", testKey("alice"))
				s.run(client, "panic")
				client.Close()
			}
		}
		time.Sleep(time.Minute)
		if got, want := s.held(), (holdings{slots: 1}); got != want { // Serve has one in its hand
			s.Errorf("left: %+v, want %+v", got, want)
		}
	})
}
