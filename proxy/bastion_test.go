package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// far are targets in memory that a Front jumps to.
type far struct {
	mu    sync.Mutex
	ends  []*memTarget // theirs, in order
	near  []*memTarget // the proxy's
	asked []string
}

func (f *far) jump(_ context.Context, who *Identity, host string, port uint32) (JumpConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf("%s %s %d", who.Principal, host, port))
	theirs, ours := newMemConn(netip.MustParseAddrPort("10.2.0.2:22"))
	f.ends = append(f.ends, &memTarget{memConn: theirs})
	f.near = append(f.near, &memTarget{memConn: ours})
	return f.near[len(f.near)-1], nil
}

// jumping runs a test against a Front whose jumps lead to targets in memory.
func jumping(t *testing.T, limits Limits, test func(s *site, f *far)) {
	t.Helper()
	f := &far{}
	inMemory(t, func(o *FrontOptions) { o.Jump, o.Limits = f.jump, limits }, func(s *site) { test(s, f) })
}

// direct is the request of a jump.
func direct(host string, port uint32) []byte {
	return ssh.Marshal(struct {
		Host     string
		Port     uint32
		From     string
		FromPort uint32
	}{host, port, "127.0.0.1", 40000})
}

func tryJump(client *ssh.Client, host string, port uint32) (ssh.Channel, error) {
	ch, requests, err := client.OpenChannel("direct-tcpip", direct(host, port))
	if err == nil {
		go ssh.DiscardRequests(requests)
	}
	return ch, err
}

// open jumps and returns both ends.
func (f *far) open(s *site, client *ssh.Client) (ssh.Channel, *memTarget) {
	s.Helper()
	ch, err := tryJump(client, "builder1", 22)
	if err != nil {
		s.Fatalf("jump: %v; the log:\n%s", err, s.book)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return ch, f.ends[len(f.ends)-1]
}

// refusedJump expects a jump to be refused for a reason, and returns the sentence.
func refusedJump(t testing.TB, client *ssh.Client, host string, port uint32, want ssh.RejectionReason) string {
	t.Helper()
	_, err := tryJump(client, host, port)
	var refusal *ssh.OpenChannelError
	if !errors.As(err, &refusal) || refusal.Reason != want {
		t.Fatalf("jump to %q port %d: %v, want it refused with %v", host, port, err, want)
	}
	return refusal.Message
}

func readAll(r io.Reader) string {
	all, err := io.ReadAll(r)
	if err != nil {
		return fmt.Sprintf("%q and then %v", all, err)
	}
	return string(all)
}

// Guards against G11: a client that has sent everything and closes its side loses
// the answer, and a target that does so loses the rest of the question.
func TestJumpKeepsHalfCloseBothWays(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		ch, end := f.open(s, client)
		io.WriteString(ch, "the question")
		ch.CloseWrite()
		if got := readAll(end); got != "the question" {
			s.Errorf("the target got %q", got)
		}
		time.Sleep(10 * time.Minute) // it takes its time
		io.WriteString(end, "the answer")
		end.CloseWrite()
		if got := readAll(ch); got != "the answer" {
			s.Errorf("the client got %q", got)
		}

		ch, end = f.open(s, client)
		io.WriteString(end, "a greeting and nothing more")
		end.CloseWrite()
		if got := readAll(ch); got != "a greeting and nothing more" {
			s.Errorf("the client got %q", got)
		}
		time.Sleep(10 * time.Minute)
		io.WriteString(ch, "still talking")
		ch.CloseWrite()
		if got := readAll(end); got != "still talking" {
			s.Errorf("the target got %q", got)
		}
		s.settle(nil)
		if got := s.held(); got.jumps != 0 || got.sessions != 0 || got.slots != 2 {
			s.Errorf("%+v is held after both jumps ended", got)
		}
	})
}

// Guards against bytes that are lost, doubled or mixed between jumps, which share
// buffers.
func TestJumpsMoveBytesWholeAndInOrder(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		const size = 3<<20 + 5
		var wg sync.WaitGroup
		for i := range 4 {
			ch, end := f.open(s, client)
			data := bytes.Repeat(sha256sum(i), size/32+1)[:size]
			wg.Go(func() { ch.Write(data); ch.CloseWrite() })
			wg.Go(func() { end.Write(data); end.CloseWrite() })
			wg.Go(func() {
				if got := readAll(ch); got != string(data) {
					t.Errorf("jump %d: the client got %d bytes of %d, or others", i, len(got), size)
				}
			})
			wg.Go(func() {
				if got := readAll(end); got != string(data) {
					t.Errorf("jump %d: the target got %d bytes of %d, or others", i, len(got), size)
				}
			})
		}
		wg.Wait()
	})
}

// Guards against an audit that does not tell who went where, for how long and with
// how much.
func TestJumpLeavesTwoLines(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		ch, end := f.open(s, client)
		io.WriteString(ch, "12345")
		io.WriteString(end, "123")
		time.Sleep(90 * time.Second)
		ch.CloseWrite()
		end.CloseWrite()
		s.logged("ssh jump opened", "addr", "10.1.0.1", "principal", "alice", "key", fingerprint(testKey("alice")),
			"target", `"builder1:22"`, "dialled", "10.2.0.2:22")
		s.logged("ssh jump ended", "principal", "alice", "key", fingerprint(testKey("alice")), "target", `"builder1:22"`,
			"dialled", "10.2.0.2:22", "sent", "5", "received", "3", "seconds", "90", "reason", "both sides ended")
	})
}

// Guards against text of a client that forges lines of the log.
func TestTargetsAreQuotedInTheLog(t *testing.T) {
	inMemory(t, func(o *FrontOptions) {
		o.Jump = func(_ context.Context, _ *Identity, host string, _ uint32) (JumpConn, error) {
			return nil, fmt.Errorf("lookup %s: nothing", host)
		}
	}, func(s *site) {
		refusedJump(s, s.login("nix", testKey("alice")), "a\nmsg=\"ssh login\"\x1b[2J"+strings.Repeat("x", 500), 22, ssh.ConnectionFailed)
		line := s.logged("ssh jump failed", "target", `"a\nmsg=\"ssh login\"\x1b[2J`, "reason", `\x1b[2J`)
		for key, value := range line {
			if text := fmt.Sprint(value); strings.ContainsAny(text, "\n\x1b") || len(text) > 200 {
				s.Errorf("%s has %q", key, text)
			}
		}
	})
}

// Guards against a bastion that tells strangers what exists behind it, and against
// the proxy's own addresses in what clients read.
func TestRefusedAndFailedJumpsTellLittle(t *testing.T) {
	dialError := func(errno error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(10, 9, 9, 9)}, Addr: &net.TCPAddr{IP: net.IPv4(10, 9, 9, 8)}, Err: errno}
	}
	failures := map[string]struct {
		err    error
		reason ssh.RejectionReason
		text   string
	}{
		"refused":     {refuseJump("10.9.9.9 is loopback"), ssh.Prohibited, jumpRefused},
		"wrapped":     {fmt.Errorf("jump: %w", refuseJump("secret")), ssh.Prohibited, jumpRefused},
		"closed port": {dialError(syscall.ECONNREFUSED), ssh.ConnectionFailed, "nixbastion: connection refused"},
		"no route":    {dialError(syscall.EHOSTUNREACH), ssh.ConnectionFailed, "nixbastion: host unreachable"},
		"no net":      {dialError(syscall.ENETUNREACH), ssh.ConnectionFailed, "nixbastion: host unreachable"},
		"slow":        {dialError(syscall.ETIMEDOUT), ssh.ConnectionFailed, "nixbastion: connection timed out"},
		"too slow":    {context.DeadlineExceeded, ssh.ConnectionFailed, "nixbastion: connection timed out"},
		"no name":     {&net.DNSError{Err: "no such host", Name: "x", Server: "10.9.9.9:53", IsNotFound: true}, ssh.ConnectionFailed, "nixbastion: no such host"},
		"no server":   {&net.DNSError{Err: "timeout", Name: "x", Server: "10.9.9.9:53", IsTimeout: true}, ssh.ConnectionFailed, "nixbastion: the name could not be resolved"},
		"else":        {dialError(syscall.EMFILE), ssh.ConnectionFailed, "nixbastion: could not connect"},
		"no address":  {errNoAddress, ssh.ConnectionFailed, "nixbastion: no such host"},
	}
	inMemory(t, func(o *FrontOptions) {
		o.Jump = func(_ context.Context, _ *Identity, host string, _ uint32) (JumpConn, error) {
			return nil, failures[host].err
		}
	}, func(s *site) {
		client := s.login("nix", testKey("alice"))
		for name, want := range failures {
			if got := refusedJump(s, client, name, 22, want.reason); got != want.text {
				s.Errorf("%s: the client reads %q, want %q", name, got, want.text)
			}
		}
		s.works(client)
	})
}

// Guards against requests that are no requests, and against what the library keeps
// of them as long as the channel lives.
func TestMalformedJumpsAreRefused(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		for _, payload := range [][]byte{
			nil, {0xff, 0xff, 0xff, 0xff}, text("builder1"), append(direct("builder1", 22), 0),
			direct(strings.Repeat("x", maxChannelPayload), 22), make([]byte, 200<<10),
		} {
			_, _, err := client.OpenChannel("direct-tcpip", payload)
			var refusal *ssh.OpenChannelError
			if !errors.As(err, &refusal) || refusal.Reason != ssh.Prohibited || refusal.Message != jumpRefused {
				s.Errorf("%d bytes: %v", len(payload), err)
			}
		}
		if len(f.asked) != 0 {
			s.Errorf("somebody was asked for %q", f.asked)
		}
	})
}

// Guards against jumps without number on one connection.
func TestThirtyThirdJumpIsRefusedForWantOfResources(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		var open []ssh.Channel
		for range 32 {
			ch, _ := f.open(s, client)
			open = append(open, ch)
		}
		if got := refusedJump(s, client, "builder1", 22, ssh.ResourceShortage); !strings.Contains(got, "more than 32 jumps") {
			s.Errorf("refused with %q", got)
		}
		s.logged("ssh jump refused", "reason", "more than 32 jumps on one connection")
		s.works(client) // sessions have a count of their own
		f.open(s, s.login("nix", testKey("alice")))
		open[0].Close()
		s.settle(nil)
		f.open(s, client)
		if got := s.held(); got.jumps != 33 || got.sessions != 33 {
			s.Errorf("%+v is held by 33 jumps", got)
		}
	})
}

// Guards against jumps that take the descriptors which sessions need: all of them
// together have a quarter.
func TestAllJumpsTogetherHaveAQuarter(t *testing.T) {
	for name, limits := range map[string]Limits{
		"connections": {Connections: 12},
	} {
		t.Run(name, func(t *testing.T) {
			jumping(t, limits, func(s *site, f *far) {
				first, second := s.login("nix", testKey("alice")), s.login("nix", testKey("root"))
				f.open(s, first)
				f.open(s, second)
				ch, _ := f.open(s, second)
				for _, client := range []*ssh.Client{first, second} {
					if got := refusedJump(s, client, "builder1", 22, ssh.ResourceShortage); !strings.Contains(got, "too many jumps at once") {
						s.Errorf("refused with %q", got)
					}
					s.works(client)
				}
				ch.Close()
				s.settle(nil)
				f.open(s, first)
			})
		})
	}
}

// Guards against a client that uses the bastion to knock at many doors.
func TestJumpsCountAmongTheChannelsThatAreOpened(t *testing.T) {
	jumping(t, Limits{OpensPer10s: 5, KeepAlive: time.Hour}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		for range 5 {
			ch, _ := f.open(s, client)
			ch.Close()
		}
		if got := refusedJump(s, client, "builder1", 22, ssh.ResourceShortage); !strings.Contains(got, "more than 5 channels") {
			s.Errorf("refused with %q", got)
		}
		for range 25 {
			tryJump(client, "builder1", 22)
		}
		ends(client)
		s.logged("ssh connection ended", "reason", "flood of channels")
	})
}

// Guards against a key that was taken away and goes on jumping on the connection
// that it has.
func TestRevokedKeyOpensNoJump(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		f.open(s, client)
		s.roster.remove(testKey("alice"))
		if got := refusedJump(s, client, "builder1", 22, ssh.Prohibited); !strings.Contains(got, "not accepted any more") {
			s.Errorf("refused with %q", got)
		}
		if len(f.asked) != 1 {
			s.Errorf("asked for %q", f.asked)
		}
	})
}

// Guards against a target that swallows packets: its client would wait for minutes.
func TestJumpToABlackHoleTimesOut(t *testing.T) {
	inMemory(t, func(o *FrontOptions) {
		o.Jump = func(ctx context.Context, _ *Identity, _ string, _ uint32) (JumpConn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
		}
	}, func(s *site) {
		client := s.login("nix", testKey("alice"))
		start := time.Now()
		if got := refusedJump(s, client, "builder1", 22, ssh.ConnectionFailed); got != "nixbastion: connection timed out" {
			s.Errorf("refused with %q", got)
		}
		s.about("given up", time.Since(start), 10*time.Second)
		s.works(client)
	})
}

// Guards against dials that go on for clients that left.
func TestDialEndsWithItsClient(t *testing.T) {
	ended := make(chan error, 1)
	inMemory(t, func(o *FrontOptions) {
		o.Jump = func(ctx context.Context, _ *Identity, _ string, _ uint32) (JumpConn, error) {
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil, ctx.Err()
		}
	}, func(s *site) {
		client := s.login("nix", testKey("alice"))
		go tryJump(client, "builder1", 22)
		s.settle(nil)
		client.Close()
		s.settle(nil)
		if err := <-ended; !errors.Is(err, context.Canceled) {
			s.Errorf("the dial ended with %v", err)
		}
	})
}

// Guards against a jump that nobody uses and that keeps its place for ever, and
// against one that is cut although one side still talks.
func TestIdleJumpEndsAfterAnHour(t *testing.T) {
	for name, talk := range map[string]func(ch ssh.Channel, end *memTarget) io.Writer{
		"client talks": func(ch ssh.Channel, _ *memTarget) io.Writer { return ch },
		"target talks": func(_ ssh.Channel, end *memTarget) io.Writer { return end },
	} {
		t.Run(name, func(t *testing.T) {
			jumping(t, Limits{}, func(s *site, f *far) {
				ch, end := f.open(s, s.login("nix", testKey("alice")))
				speaker := talk(ch, end)
				for range 5 {
					time.Sleep(50 * time.Minute)
					if _, err := io.WriteString(speaker, "x"); err != nil {
						s.Fatal(err)
					}
				}
				start := time.Now()
				io.Copy(io.Discard, ch)
				s.about("the jump ended", time.Since(start), time.Hour)
				s.logged("ssh jump ended", "reason", "idle for 1h0m0s")
				if got := readAll(end); strings.Trim(got, "x") != "" {
					s.Errorf("the target got %q", got)
				}
			})
		})
	}
}

// Guards against a client that lets one jump stand still and holds the target that
// way, and against losing everything else on its connection over it.
func TestClientThatReadsNothingLosesThatJumpAlone(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		other, otherEnd := f.open(s, client)
		ch, end := f.open(s, client)
		go func() {
			for {
				if _, err := end.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}()
		s.settle(nil)
		time.Sleep(2*time.Minute + time.Second)
		s.logged("ssh jump ended", "reason", "client read nothing for 2m0s")
		io.WriteString(otherEnd, "still here")
		otherEnd.CloseWrite()
		if got := readAll(other); got != "still here" {
			s.Errorf("the other jump got %q", got)
		}
		io.Copy(io.Discard, ch)
		s.works(client)
	})
}

// Guards against a target that reads nothing and holds the jump for ever.
func TestTargetThatReadsNothingIsGivenUp(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		ch, _ := f.open(s, client)
		go ch.Write(make([]byte, 4<<20))
		s.settle(nil)
		start := time.Now()
		io.Copy(io.Discard, ch)
		if took := time.Since(start); took < 2*time.Minute || took > 4*time.Minute {
			s.Errorf("given up after %s", took)
		}
		s.logged("ssh jump ended", "reason", "target read nothing for 2m0s")
		s.works(client)
	})
}

// Guards against a slow target that is taken for a dead one: it reads a little at
// a time.
func TestTargetThatReadsSlowlyIsKept(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		ch, end := f.open(s, s.login("nix", testKey("alice")))
		end.in.shrink(1 << 10)
		data := bytes.Repeat(sha256sum(1), 8<<10/32)
		go func() { ch.Write(data); ch.CloseWrite() }()
		var got []byte
		for piece := make([]byte, 1<<10); ; time.Sleep(100 * time.Second) {
			n, err := end.Read(piece)
			if got = append(got, piece[:n]...); err != nil {
				break
			}
		}
		if !bytes.Equal(got, data) {
			s.Errorf("%d bytes arrived of %d", len(got), len(data))
		}
	})
}

// Guards against what a client sent last being lost because it closed its channel
// right behind it.
func TestLastBytesOfAClosedJumpStillGoOut(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		ch, end := f.open(s, s.login("nix", testKey("alice")))
		data := bytes.Repeat(sha256sum(2), 512<<10/32)
		ch.Write(data)
		ch.CloseWrite()
		ch.Close()
		s.settle(nil)
		if got := readAll(end); got != string(data) {
			s.Errorf("%d bytes arrived of %d", len(got), len(data))
		}
		s.logged("ssh jump ended", "sent", fmt.Sprint(len(data)), "reason", closedByClient)
	})
}

// Guards against an answer that is lost because the target does not want to hear
// the rest of the question.
func TestAnswerOfATargetThatStoppedReadingComesIn(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		ch, end := f.open(s, s.login("nix", testKey("alice")))
		end.in.close() // what the proxy writes fails from now on
		io.WriteString(ch, "a question")
		s.settle(nil)
		io.WriteString(end, "no")
		end.CloseWrite()
		if got := readAll(ch); got != "no" {
			s.Errorf("the client got %q", got)
		}
		s.logged("ssh jump ended", "reason", "target: ")
	})
}

// Guards against a jump that outlives its target.
func TestJumpEndsWithItsTarget(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		ch, _ := f.open(s, client)
		f.near[0].breakDown(&net.OpError{Op: "read", Addr: &net.TCPAddr{}, Err: syscall.ECONNRESET})
		if got := readAll(ch); got != "" {
			s.Errorf("the client got %q", got)
		}
		line := s.logged("ssh jump ended", "reason", "target: connection reset by peer")
		if strings.Contains(fmt.Sprint(line["reason"]), "read") {
			s.Errorf("the reason is %q", line["reason"])
		}
		s.works(client)
	})
}

// Guards against targets that stay connected when their clients are gone.
func TestJumpsEndWithTheirClient(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		var theirs []*memTarget
		for range 3 {
			_, end := f.open(s, client)
			theirs = append(theirs, end)
		}
		client.Close()
		for _, end := range theirs {
			if got := readAll(end); got != "" {
				s.Errorf("the target got %q", got)
			}
		}
		if got := s.held(); got != (holdings{slots: 1}) {
			s.Errorf("%+v is held for nobody", got)
		}
	})
}

// Guards against requests that nobody reads, which stop the whole connection, and
// against a shell behind a jump.
func TestRequestsOnAJumpAreRefused(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		client := s.login("nix", testKey("alice"))
		ch, _ := f.open(s, client)
		for _, kind := range []string{"exec", "shell", "pty-req", "env", "window-change", "eow@openssh.com"} {
			for range 20 {
				if s.request(ch, kind, text("say x")) {
					s.Errorf("%s accepted", kind)
				}
			}
		}
		s.works(client)
	})
}

// Guards against a client that never closes its side of a jump that is over.
func TestClientThatNeverClosesItsJumpIsCut(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		c := rawLogin(s)
		c.must(s, &channelOpen{Type: "direct-tcpip", Window: 1 << 20, MaxPacket: 32 << 10, Data: direct("builder1", 22)})
		c.next(s)
		f.near[0].breakDown(syscall.ECONNRESET)
		for {
			packet, err := c.read()
			if err != nil {
				break
			}
			if packet[0] == msgGlobalRequest { // a keep-alive
				c.write([]byte{82})
			}
		}
		s.logged("ssh connection ended", "reason", "channel not closed")
	})
}

// Guards against a restart that waits for people who left a shell open, and
// against commands that are cut with the jumps beside them.
func TestShutdownEndsJumpsAtOnceAndWaitsForCommands(t *testing.T) {
	jumping(t, Limits{}, func(s *site, f *far) {
		only, both := s.login("nix", testKey("alice")), s.login("nix", testKey("alice"))
		f.open(s, only)
		jumped, end := f.open(s, both)
		ch, requests := s.channel(both)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("wait"))
		s.settle(nil)
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- s.shutDown(time.Hour) }()
		if got := readAll(end) + readAll(jumped); got != "" {
			s.Errorf("got %q", got)
		}
		ends(only)
		s.about("jumps ended", time.Since(start), 0)
		if got := refusedJump(s, both, "builder1", 22, ssh.ResourceShortage); !strings.Contains(got, "shutting down") {
			s.Errorf("refused with %q", got)
		}
		if len(done) != 0 {
			s.Error("shutdown did not wait for the command")
		}
		ch.Close()
		if err := <-done; err != nil {
			s.Errorf("shutdown: %v", err)
		}
	})
}

// Guards against a fault in the way to a target that ends everybody's connections,
// or leaves a client without an answer.
func TestPanicOfAJumpEndsThatJumpAlone(t *testing.T) {
	inMemory(t, func(o *FrontOptions) {
		o.Jump = func(context.Context, *Identity, string, uint32) (JumpConn, error) { panic("secret\n") }
	}, func(s *site) {
		client := s.login("nix", testKey("alice"))
		if got := refusedJump(s, client, "builder1", 22, ssh.ConnectionFailed); strings.Contains(got, "secret") {
			s.Errorf("refused with %q", got)
		}
		s.logged("panic", "where", "jump", "principal", "alice", "panic", `secret\n`)
		s.works(client)
		if got := s.held(); got.jumps != 0 {
			s.Errorf("%+v is held", got)
		}
	})
}
