package proxy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// waiting opens a session whose command never reads its input.
func (s *site) waiting(client *ssh.Client) ssh.Channel {
	s.Helper()
	ch, requests := s.channel(client)
	go ssh.DiscardRequests(requests)
	s.request(ch, "exec", text("wait"))
	return ch
}

// taken is what sessions and their unread input take of the budget, in bytes.
func (s *site) taken() int64 {
	s.settle(nil)
	s.front.memory.mu.Lock()
	defer s.front.memory.mu.Unlock()
	return s.front.memory.used
}

// Guards against sessions of one principal that leave nothing for others, and against
// places that are not given back.
func TestSessionsShareABudget(t *testing.T) {
	inMemory(t, withLimits(Limits{SessionMemory: 8 * sessionCost}), func(s *site) {
		alice, root := s.login("nix", testKey("alice")), s.login("nix", testKey("root"))
		var all []ssh.Channel
		for range 4 {
			all = append(all, s.waiting(alice))
		}
		if got := s.refusedFor(alice, ssh.ResourceShortage); !strings.Contains(got.Message, "too much memory") {
			s.Errorf("refused with %q", got.Message)
		}
		for range 2 { // half of what is left
			all = append(all, s.waiting(root))
		}
		s.refusedFor(root, ssh.ResourceShortage)
		if got := s.front.refusals.counts()[RefusedMemory]; got != 2 {
			s.Errorf("%d refusals are counted, want 2", got)
		}
		for _, ch := range all {
			ch.Close()
		}
		if got := s.taken(); got != 0 {
			s.Errorf("%d bytes are taken by nobody", got)
		}
		s.works(alice)
	})
}

// Guards against what comes with a channel, up to 256 KiB that the library keeps as long
// as the channel, that no session reads and that is forgiven for that.
func TestSessionsBringNothingAlong(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		_, _, err := client.OpenChannel("session", make([]byte, maxChannelPayload+1))
		var refusal *ssh.OpenChannelError
		if !errors.As(err, &refusal) || refusal.Reason != ssh.Prohibited {
			s.Errorf("a session with much behind its name: %v", err)
		}
		s.works(client)
		if got := s.taken(); got != 0 {
			s.Errorf("%d bytes are taken by nobody", got)
		}
	})
}

// Guards against G8: unread input of many sessions, 2 MiB each. Who sends it stands
// still once the budget has nothing left for him, is ended when that does not change,
// and is in nobody's way meanwhile.
func TestUnreadInputIsPaidFor(t *testing.T) {
	const budget = 16 << 20
	// The client's library answers keep-alives under the lock under which it writes,
	// and a bubble's time stands still while somebody waits for a lock.
	inMemory(t, withLimits(Limits{SessionMemory: budget, KeepAlive: time.Hour}), func(s *site) {
		var clients []*ssh.Client
		var all []ssh.Channel
		for range 20 {
			client := s.login("nix", testKey("alice"))
			clients = append(clients, client)
			all = append(all, s.waiting(client))
		}
		for _, ch := range all {
			go ch.Write(make([]byte, 2<<20))
		}
		if got := s.taken(); got > budget/2 || got < budget/4 {
			s.Errorf("%d bytes are taken for 40 MiB that nobody reads, want nearly %d", got, budget/2)
		}
		other := s.login("nix", testKey("root"))
		s.uploads(other, 8<<20)
		time.Sleep(121 * time.Second)
		s.settle(nil)
		ended := s.book.records(s, "ssh connection ended")
		for _, record := range ended {
			if reason := fmt.Sprint(record["reason"]); record["principal"] != "alice" || !strings.Contains(reason, "more sent than its sessions read") {
				s.Errorf("connection of %v ended: %s", record["principal"], reason)
			}
		}
		if len(ended) == 0 {
			s.Error("no connection ended that stood still")
		}
		other.Close()
		for _, client := range clients {
			client.Close()
		}
		if got := s.taken(); got != 0 {
			s.Errorf("%d bytes are taken by nobody", got)
		}
	})
}

// uploads has a command read so many bytes.
func (s *site) uploads(client *ssh.Client, n int) {
	s.Helper()
	session, err := client.NewSession()
	if err != nil {
		s.Fatal(err)
	}
	defer session.Close()
	zeros := make([]byte, n)
	session.Stdin = bytes.NewReader(zeros)
	out, err := session.Output("digest")
	if want := fmt.Sprintf("%d %x <nil>", n, sha256.Sum256(zeros)); err != nil || string(out) != want {
		s.Errorf("got %q, %v, want %q", out, err, want)
	}
}

// Guards against packets of one byte, of which each takes as much as it took on the
// wire: a window full of them takes sixty times 2 MiB.
func TestTinyPacketsArePaidForAsTheyCame(t *testing.T) {
	const packets = 50_000
	inMemory(t, nil, func(s *site) {
		c := rawLogin(s)
		c.must(s, &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10})
		c.next(s)
		c.must(s, &channelRequest{Type: "exec", Payload: text("wait")})
		tiny := ssh.Marshal(struct {
			Channel uint32 `sshtype:"94"`
			Data    string
		}{0, "x"})
		for range packets {
			if err := c.write(tiny); err != nil {
				s.Fatal(err)
			}
		}
		if got := s.taken(); got < packets*32 {
			s.Errorf("%d bytes are taken for %d packets of a byte, want at least 32 for each", got, packets)
		}
	})
}

// Guards against input that is paid for twice or for ever: what was read is given
// back, on a connection with one session and on one that has others which do not read.
func TestInputThatIsReadIsGivenBack(t *testing.T) {
	for _, idle := range []int{0, 1} {
		t.Run(fmt.Sprint(idle, " other sessions"), func(t *testing.T) {
			inMemory(t, withLimits(Limits{SessionMemory: 2 << 20}), func(s *site) {
				client := s.login("nix", testKey("alice"))
				for range idle {
					s.waiting(client)
				}
				for range 3 {
					s.uploads(client, 16<<20)
				}
				if got, want := s.taken(), int64(idle+1)*sessionCost; got > want {
					s.Errorf("%d bytes are taken, want at most %d", got, want)
				}
			})
		})
	}
}

// Guards against downloads whose window adjustments are taken for input, and against
// days of keep-alive answers.
func TestWhatIsNoInputIsNotPaidFor(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		s.waiting(client)
		session, err := client.NewSession()
		if err != nil {
			s.Fatal(err)
		}
		out, err := session.StdoutPipe()
		if err != nil {
			s.Fatal(err)
		}
		if err := session.Start("pour"); err != nil {
			s.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, out, 256<<20); err != nil {
			s.Fatal(err)
		}
		if got, want := s.taken(), int64(2*sessionCost); got > want {
			s.Errorf("%d bytes are taken, want at most %d", got, want)
		}
	})
}

// Guards against what a client sends into a stream that nobody reads.
func TestInputOnStandardErrorEndsTheConnection(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch := s.waiting(client)
		ch.Stderr().Write([]byte("x"))
		s.about("connection ended", ends(client), 0)
		s.logged("ssh connection ended", "reason", "input on standard error")
	})
}

// Guards against a client that fetches much and is held for the packets by which it lets
// more come: they were received, and are no input.
func TestWhatLetsMoreComeIsNoInput(t *testing.T) {
	var sent atomic.Int64
	i := &intake{sent: &sent, open: 1, received: 1 << 20}
	sent.Store(adjusting << 19)
	if n := i.unread(); n != 1<<19 {
		t.Errorf("%d bytes are unread, want half of a MiB", n)
	}
	sent.Store(adjusting << 20)
	if n := i.unread(); n != 0 {
		t.Errorf("%d bytes are unread, want none", n)
	}
	i.received = 1 << 20 // while nothing was sent
	if n := i.unread(); n != 1<<20 {
		t.Errorf("%d bytes are unread, want all that came since", n)
	}
}
