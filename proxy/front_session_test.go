package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// request asks for something on a session channel and returns the answer.
func (s *site) request(ch ssh.Channel, kind string, payload []byte) bool {
	s.Helper()
	ok, err := ch.SendRequest(kind, true, payload)
	if err != nil {
		s.Fatalf("%s request: %v", kind, err)
	}
	return ok
}

// text is a string as it stands in a payload.
func text(s string) []byte { return ssh.Marshal(struct{ S string }{s}) }

func ptyRequest(term string) []byte {
	return ssh.Marshal(struct {
		Term             string
		Cols, Rows, W, H uint32
		Modes            string
	}{term, 80, 24, 0, 0, "\x00"})
}

// Guards against G3: a length that wraps took the process of another library.
func TestLyingLengthsInRequestsAreHarmless(t *testing.T) {
	lengths := [][]byte{
		{}, {0}, {0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0xff, 0xff, 0xff, 0xfc}, {0x80, 0, 0, 0}, {0x7f, 0xff, 0xff, 0xff}, {0, 0, 0, 1},
		{0, 0, 0, 1, 'x', 0xff, 0xff, 0xff, 0xff}, {0xff, 0xff, 0xff, 0xff, 'x', 't', 'e', 'r', 'm'},
	}
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		for _, kind := range []string{"pty-req", "window-change", "env", "exec", "signal", "subsystem", "x11-req", "\xff\x00"} {
			ch, requests := s.channel(client)
			go ssh.DiscardRequests(requests)
			for _, payload := range lengths {
				if s.request(ch, kind, payload) {
					s.Errorf("%q with payload %x was accepted", kind, payload)
				}
			}
			ch.Close()
		}
		s.works(client)
	})
}

// Guards against G4: a fault in one command that ends everybody's.
func TestPanicEndsThatSessionAlone(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		other, _ := s.channel(client)
		s.request(other, "exec", text("cat"))
		_, stderr, status := s.run(client, "panic secret\n\x1b[2J")
		if status != statusInternal || !strings.Contains(stderr, "internal error") || strings.Contains(stderr, "secret") {
			s.Errorf("got status %d and %q, want %d and a sentence without details", status, stderr, statusInternal)
		}
		s.logged("panic", "addr", "10.1.0.1", "principal", "alice", "panic", `secret\n\x1b[2J`)
		io.WriteString(other, "still here")
		other.CloseWrite()
		if got, err := io.ReadAll(other); string(got) != "still here" {
			s.Errorf("the other session got %q (%v)", got, err)
		}
		s.works(client)
	})
}

// Guards against G5: window changes that nobody reads stop the connection for
// good, and leave goroutines behind when it is closed.
func TestTerminalFloodsStopNothing(t *testing.T) {
	inMemory(t, withLimits(Limits{Sessions: 100}), func(s *site) {
		client := s.login("nix", testKey("alice"))
		for range 50 {
			ch, requests := s.channel(client)
			go ssh.DiscardRequests(requests)
			s.request(ch, "pty-req", ptyRequest("xterm"))
			for range 40 {
				if _, err := ch.SendRequest("window-change", false, make([]byte, 16)); err != nil {
					s.Fatal(err)
				}
			}
		}
		if ok, _, err := client.SendRequest("keepalive@openssh.com", true, nil); err != nil || !ok {
			s.Fatalf("keep-alive answered with %t, %v", ok, err)
		}
		s.works(client)
	})
}

// Guards against G5 while a command runs: nobody reads its requests then.
func TestRequestsOfARunningCommandAreAnswered(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("wait"))
		for _, kind := range []string{"exec", "shell", "env", "pty-req", "signal", "window-change", "unheard-of"} {
			for range 20 {
				if s.request(ch, kind, text("say twice")) {
					s.Errorf("%s accepted while a command runs", kind)
				}
			}
		}
		s.works(client)
	})
}

// Guards against G6: variables without bound in number or size.
func TestEnvFloodIsCut(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		sent := 0
		for ; sent < 2000; sent++ {
			ok, err := ch.SendRequest("env", true, ssh.Marshal(struct{ Name, Value string }{fmt.Sprintf("V%d", sent), strings.Repeat("x", 200_000)}))
			if ok {
				s.Fatal("a variable of 200 kB was accepted")
			}
			if err != nil {
				break
			}
		}
		if sent != 64 {
			s.Errorf("%d requests were answered before the channel was closed, want 64", sent)
		}
		s.logged("ssh session closed", "addr", "10.1.0.1", "reason", "too many requests")
		s.works(client)
	})
}

// Guards against the same in small pieces, and against names that a log or a
// shell would choke on.
func TestVariablesAreBounded(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		env := func(name, value string) bool {
			return s.request(ch, "env", ssh.Marshal(struct{ Name, Value string }{name, value}))
		}
		for _, name := range []string{"", "A=B", "A B", "A\n", "A\x00", "ÄÖ", "A-B"} {
			if env(name, "x") {
				s.Errorf("variable %q accepted", name)
			}
		}
		if !env("FULL", strings.Repeat("x", 4092)) || env("OVER", strings.Repeat("x", 4093)) {
			s.Error("the bound of 4 KiB for name and value is not kept")
		}
		kept := 1
		for i := range 40 {
			if env(fmt.Sprintf("V%d", i), "v") {
				kept++
			}
		}
		if kept != 32 {
			s.Errorf("%d variables accepted, want 32", kept)
		}
		s.request(ch, "exec", text("env V7"))
		if got, _ := io.ReadAll(ch); string(got) != "32 v" {
			s.Errorf("the command has %q, want 32 variables and v", got)
		}
	})
}

// Guards against anything but exec: there is no shell to fall into.
func TestOnlyExecIsServed(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		for kind, payload := range map[string][]byte{
			"subsystem": text("sftp"),
			"x11-req": ssh.Marshal(struct {
				Single        bool
				Proto, Cookie string
				Screen        uint32
			}{}),
			"auth-agent-req@openssh.com": nil,
			"signal":                     text("KILL"),
			"break":                      make([]byte, 4),
		} {
			if s.request(ch, kind, payload) {
				s.Errorf("%s accepted", kind)
			}
		}
		if !s.request(ch, "exec", text("say hello")) {
			s.Error("exec refused after the others")
		}
		if got, _ := io.ReadAll(ch); string(got) != "hello" {
			s.Errorf("exec printed %q", got)
		}
	})
}

// Guards against a person who types `ssh HOST` and sees nothing.
func TestShellIsRefusedInWords(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		session, err := s.login("nix", testKey("alice")).NewSession()
		if err != nil {
			s.Fatal(err)
		}
		var stderr bytes.Buffer
		session.Stderr = &stderr
		if err := session.Shell(); err != nil {
			s.Fatal(err)
		}
		status := exitStatus(s, session.Wait())
		if status != statusNoShell || !strings.Contains(stderr.String(), "no shell here") || strings.Count(stderr.String(), "\n") != 1 {
			s.Errorf("got status %d and %q", status, stderr.String())
		}
	})
}

// Guards against the same with a terminal: one that asks for it leaves when it is
// refused, as OpenSSH with -t, and in its raw mode a bare line feed is a staircase.
func TestTerminalIsGrantedForTheSentenceAlone(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		if !s.request(ch, "pty-req", ptyRequest("xterm")) || !s.request(ch, "shell", nil) {
			s.Error("terminal or shell refused before the sentence")
		}
		if got, _ := io.ReadAll(ch.Stderr()); string(got) != "nixbastion: "+noShell+"\r\n" {
			s.Errorf("stderr is %q", got)
		}
		binary, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(binary, "pty-req", ptyRequest("xterm"))
		s.request(binary, "exec", text("cat"))
		io.WriteString(binary, "\n\x03\x04\r")
		binary.CloseWrite()
		if got, _ := io.ReadAll(binary); string(got) != "\n\x03\x04\r" {
			s.Errorf("a command with a terminal got %q, want its bytes untouched", got)
		}
	})
}

// Guards against a client that loses output or status: what comes after close is
// lost, and some look at nothing after the status.
func TestEndOfFileThenStatusThenClose(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := rawLogin(s)
		c.must(s, &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10})
		c.next(s)
		c.must(s, &channelRequest{Type: "exec", Payload: text("exit 7")})
		var order []byte
		for len(order) == 0 || order[len(order)-1] != 97 {
			packet := c.next(s)
			order = append(order, packet[0])
			if packet[0] == 98 && !bytes.Contains(packet, append(text("exit-status"), 0, 0, 0, 0, 7)) {
				s.Errorf("request is %q, want exit-status 7", packet)
			}
		}
		if want := []byte{96, 98, 97}; !bytes.Equal(order, want) {
			s.Errorf("messages %d, want end of file, request, close: %d", order, want)
		}
	})
}

// slowConn takes its time to return from a write whose bytes are on their way.
type slowConn struct{ net.Conn }

func (c slowConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	time.Sleep(5 * time.Millisecond)
	return n, err
}

// Guards against a status that is lost when the client answers our end of file
// with its close at once, as OpenSSH does: the library answers that with ours,
// and the status, written next, would come too late.
func TestStatusArrivesAlthoughTheClientClosesAtOurEndOfFile(t *testing.T) {
	s := onSockets(t, nil, func(conn *net.TCPConn) net.Conn { return slowConn{conn} })
	c := rawLogin(s)
	for id := range uint32(5) {
		c.must(s, &channelOpen{Type: "session", Channel: id, Window: 1 << 20, MaxPacket: 32 << 10})
		confirm := c.next(s)
		theirs := binary.BigEndian.Uint32(confirm[5:])
		c.must(s, &channelRequest{Channel: theirs, Type: "exec", Payload: text("cat")})
		c.must(s, channelEnd{96, theirs})
		var order []byte
		for len(order) == 0 || order[len(order)-1] != 97 {
			packet := c.next(s)
			if order = append(order, packet[0]); packet[0] == 96 {
				c.must(s, channelEnd{97, theirs})
			}
		}
		if want := []byte{96, 98, 97}; !bytes.Equal(order, want) {
			t.Errorf("messages %d, want end of file, request, close: %d", order, want)
		}
	}
}

// Guards against a closed standard input that is taken for a client that left.
func TestHalfCloseKeepsTheCommand(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("wait"))
		ch.CloseWrite()
		time.Sleep(10 * time.Minute)
		s.works(client)
		reply, _ := s.channel(client)
		s.request(reply, "exec", text("cat"))
		io.WriteString(reply, "all of it")
		reply.CloseWrite()
		if got, _ := io.ReadAll(reply); string(got) != "all of it" {
			s.Errorf("after a half-close came %q", got)
		}
		if _, err := ch.SendRequest("window-change", true, nil); err != nil {
			s.Errorf("the command that lost its input is gone: %v", err)
		}
	})
}

// Guards against builds that go on for clients that left.
func TestCommandsEndWithTheirClient(t *testing.T) {
	for name, leave := range map[string]func(client *ssh.Client, ch ssh.Channel){
		"channel closed":    func(_ *ssh.Client, ch ssh.Channel) { ch.Close() },
		"connection closed": func(client *ssh.Client, _ ssh.Channel) { client.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			inMemory(t, func(o *FrontOptions) {
				o.Exec = func(ctx context.Context, x *Exec) int {
					<-ctx.Done()
					ended <- ctx.Err()
					return 0
				}
			}, func(s *site) {
				client := s.login("nix", testKey("alice"))
				ch, _ := s.channel(client)
				s.request(ch, "exec", text("x"))
				s.settle(nil)
				if len(ended) != 0 {
					s.Fatal("the context ended before the client left")
				}
				leave(client, ch)
				s.settle(nil)
				if len(ended) != 1 {
					s.Error("the context did not end with the client")
				}
			})
		})
	}
}

// Guards against a command line without bound.
func TestCommandLengthIsBounded(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		if out, _, status := s.run(client, "size "+strings.Repeat("x", 4091)); out != "4096" || status != 0 {
			s.Errorf("command of 4096 bytes: %q, status %d", out, status)
		}
		for _, size := range []int{4097, 200_000} {
			out, stderr, status := s.run(client, "size "+strings.Repeat("x", size-5))
			if out != "" || status != statusRefused || !strings.Contains(stderr, "longer than 4096 bytes") {
				s.Errorf("command of %d bytes: %q, %q, status %d; want a sentence and 127", size, out, stderr, status)
			}
		}
	})
}

// Guards against statuses that are lost or cut.
func TestExitStatusArrives(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		for _, want := range []int{0, 1, 127, 255, math.MaxInt32} {
			if _, _, got := s.run(client, fmt.Sprint("exit ", want)); got != want {
				s.Errorf("status %d arrived as %d", want, got)
			}
		}
	})
}

// Guards against channels that are opened and left alone; each costs memory.
func TestChannelWithoutACommandIsClosed(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		start := time.Now()
		if _, err := io.ReadAll(ch); err != nil {
			s.Fatal(err)
		}
		s.about("channel closed", time.Since(start), 10*time.Second)
		s.works(client)
	})
}

// Guards against the same time limit hitting a request that is queued behind an
// upload, and against an upload that extends it for ever.
func TestBusyConnectionExtendsTheStartOfASession(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		upload, _ := s.channel(client)
		s.request(upload, "exec", text("digest"))
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
					upload.Write([]byte("x"))
				}
			}
		}()
		ch, _ := s.channel(client)
		time.Sleep(45 * time.Second)
		if !s.request(ch, "exec", text("say late")) {
			s.Error("a session that waited behind an upload was given up")
		}
		idle, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		start := time.Now()
		io.ReadAll(idle)
		s.about("idle channel closed", time.Since(start), 130*time.Second)
	})
}

// Guards against a client that never closes its side and holds memory that way.
func TestClientThatNeverClosesItsChannelIsCut(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := rawLogin(s)
		c.must(s, &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10})
		c.next(s)
		c.must(s, &channelRequest{Type: "exec", Payload: text("exit 0")})
		start := time.Now()
		for {
			packet, err := c.read()
			if err != nil {
				break
			}
			if packet[0] == msgGlobalRequest { // a keep-alive
				c.write([]byte{82}) // no, but here I am
			}
		}
		if took := time.Since(start); took < 2*time.Minute || took > 30*time.Minute {
			s.Errorf("cut after %s", took)
		}
		s.logged("ssh connection ended", "reason", "channel not closed")
	})
}

// Guards against losing or mixing bytes on the way through read buffers and
// windows, in both directions and between connections, which share buffers.
func TestBytesArriveWholeAndInOrder(t *testing.T) {
	s := onLoopback(t, nil)
	const size = 5<<20 + 3
	var sums []string
	results := make(chan string)
	for i := range 4 {
		client := s.login("nix", testKey("alice"))
		data := bytes.Repeat(slices.Concat(sha256sum(i)), size/32+1)[:size]
		sums = append(sums, fmt.Sprintf("%d %x <nil>", size, sha256.Sum256(data)))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("digest"))
		go func() {
			ch.Write(data)
			ch.CloseWrite()
			got, _ := io.ReadAll(ch)
			results <- string(got)
		}()
	}
	for range sums {
		if got := <-results; !slices.Contains(sums, got) {
			t.Errorf("digest of an upload is %q, want one of %q", got, sums)
		}
	}
	ch, requests := s.channel(s.login("nix", testKey("alice")))
	go ssh.DiscardRequests(requests)
	s.request(ch, "exec", text("cat"))
	data := bytes.Repeat(sha256sum(9), 3<<20/32)
	go func() { ch.Write(data); ch.CloseWrite() }()
	if got, err := io.ReadAll(ch); !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back of %d, or others (%v)", len(got), len(data), err)
	}
}

func sha256sum(i int) []byte {
	sum := sha256.Sum256([]byte{byte(i)})
	return sum[:]
}

// Guards against forwarding where nobody allows it, which is refused in the words
// of RFC 4254, and against every other kind of channel.
func TestOtherChannelsAreRefused(t *testing.T) {
	direct := ssh.Marshal(struct {
		Host       string
		Port       uint32
		Originator string
		OrigPort   uint32
	}{"169.254.169.254", 80, "127.0.0.1", 1})
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		for kind, want := range map[string]ssh.RejectionReason{
			"direct-tcpip":                   ssh.Prohibited,
			"forwarded-tcpip":                ssh.UnknownChannelType,
			"x11":                            ssh.UnknownChannelType,
			"auth-agent@openssh.com":         ssh.UnknownChannelType,
			"direct-streamlocal@openssh.com": ssh.UnknownChannelType,
			"tun@openssh.com":                ssh.UnknownChannelType,
			"":                               ssh.UnknownChannelType,
		} {
			for _, payload := range [][]byte{direct, nil, {0xff, 0xff, 0xff, 0xff}} {
				_, _, err := client.OpenChannel(kind, payload)
				var refusal *ssh.OpenChannelError
				if !errors.As(err, &refusal) || refusal.Reason != want {
					s.Errorf("channel %q: %v, want reason %v", kind, err, want)
				} else if want == ssh.Prohibited && refusal.Message != jumpRefused {
					s.Errorf("refusal of %q says %q", kind, refusal.Message)
				}
			}
		}
		for _, kind := range []string{"tcpip-forward", "streamlocal-forward@openssh.com", "hostkeys-prove-00@openssh.com", ""} {
			if ok, _, err := client.SendRequest(kind, true, direct); ok || err != nil {
				s.Errorf("global request %q: %t, %v; want a refusal", kind, ok, err)
			}
		}
		s.works(client)
	})
}
