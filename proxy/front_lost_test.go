package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// tellLost replaces the command by one that tells, when its input has ended,
// whether its client was lost.
func tellLost(lost chan<- bool) func(*FrontOptions) {
	return func(o *FrontOptions) {
		o.Exec = func(_ context.Context, x *Exec) int {
			io.Copy(io.Discard, x.Stdin)
			lost <- x.Lost()
			return 0
		}
	}
}

// A client leaves by its own will when its kernel says that it closed the
// connection, whatever it did before. Guards against builds of people who gave up
// that go on, and builds of a laptop that changes its network that end.
func TestOnlyClientsThatDoNotCloseAreLost(t *testing.T) {
	for name, tc := range map[string]struct {
		leave func(conn *net.TCPConn, client *ssh.Client, session *ssh.Session, input io.Closer) error
		lost  bool
	}{
		"ends its input":     {func(_ *net.TCPConn, _ *ssh.Client, _ *ssh.Session, in io.Closer) error { return in.Close() }, false},
		"closes its channel": {func(_ *net.TCPConn, _ *ssh.Client, s *ssh.Session, _ io.Closer) error { return s.Close() }, false},
		"closes":             {func(_ *net.TCPConn, c *ssh.Client, _ *ssh.Session, _ io.Closer) error { return c.Close() }, false},
		"is killed":          {func(conn *net.TCPConn, _ *ssh.Client, _ *ssh.Session, _ io.Closer) error { return conn.Close() }, false},
		"ends half":          {func(conn *net.TCPConn, _ *ssh.Client, _ *ssh.Session, _ io.Closer) error { return conn.CloseWrite() }, false},
		"is reset when it was quiet": {func(conn *net.TCPConn, _ *ssh.Client, _ *ssh.Session, _ io.Closer) error {
			time.Sleep(time.Second + 100*time.Millisecond)
			return reset(conn)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			lost := make(chan bool, 1)
			s := onLoopback(t, func(o *FrontOptions) {
				tellLost(lost)(o)
				o.Limits.ResetQuiet = time.Second
			})
			conn := s.socket().(*net.TCPConn)
			client, err := clientOn(conn, s.config("nix", ssh.PublicKeys(testKey("alice"))))
			if err != nil {
				t.Fatal(err)
			}
			session, err := client.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			input, err := session.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := session.Start("anything"); err != nil {
				t.Fatal(err)
			}
			if err := tc.leave(conn, client, session, input); err != nil {
				t.Fatal(err)
			}
			if got := <-lost; got != tc.lost {
				t.Errorf("lost is %v, want %v; the log:\n%s", got, tc.lost, s.book)
			}
		})
	}
}

// The kernel of a client that is killed while its log comes in resets the
// connection. Guards against builds of people who gave up that go on when they are
// loud.
func TestAClientThatIsKilledWhileItReadsIsNotLost(t *testing.T) {
	lost := make(chan bool, 1)
	s := onLoopback(t, func(o *FrontOptions) {
		tellLost(lost)(o)
		tell := o.Exec
		o.Exec = func(ctx context.Context, x *Exec) int {
			for {
				if _, err := x.Stdout.Write(make([]byte, 1<<10)); err != nil {
					return tell(ctx, x)
				}
			}
		}
	})
	conn := s.socket().(*net.TCPConn)
	client, err := clientOn(conn, s.config("nix", ssh.PublicKeys(testKey("alice"))))
	if err != nil {
		t.Fatal(err)
	}
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start("anything"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, out, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := reset(conn); err != nil {
		t.Fatal(err)
	}
	if <-lost {
		t.Errorf("it counts as lost; the log:\n%s", s.book)
	}
}

func reset(conn *net.TCPConn) error { return errors.Join(conn.SetLinger(0), conn.Close()) }

// Guards against taking for a good end that nothing was heard for a minute, or
// that a client reads nothing any more.
func TestClientsThatFallSilentAreLost(t *testing.T) {
	lost := make(chan bool, 1)
	inMemory(t, tellLost(lost), func(s *site) {
		c := rawLogin(s)
		c.must(s, &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10})
		c.next(s)
		c.must(s, &channelRequest{Type: "exec", Payload: text("wait")})
		s.givenUp(c)
		if !<-lost {
			s.Error("a silent client is not lost")
		}
	})
	inMemory(t, func(o *FrontOptions) {
		tellLost(lost)(o)
		tell := o.Exec
		o.Exec = func(ctx context.Context, x *Exec) int {
			x.Stdout.Write(make([]byte, 4<<20)) // more than a window: it stands still until the connection ends
			return tell(ctx, x)
		}
	}, func(s *site) {
		client := s.login("nix", testKey("alice"))
		session, err := client.NewSession()
		if err != nil {
			s.Fatal(err)
		}
		if _, err := session.StdoutPipe(); err != nil { // which nobody reads
			s.Fatal(err)
		}
		if err := session.Start("anything"); err != nil {
			s.Fatal(err)
		}
		time.Sleep(time.Hour)
		if !<-lost {
			s.Error("a client that does not read is not lost")
		}
	})
}

// Shutdown is nobody's loss. Guards against builds that outlive the proxy's wish
// to stop.
func TestNobodyIsLostByShutdown(t *testing.T) {
	lost := make(chan bool, 1)
	inMemory(t, tellLost(lost), func(s *site) {
		c := rawLogin(s)
		c.must(s, &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10})
		c.next(s)
		c.must(s, &channelRequest{Type: "exec", Payload: text("wait")})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.front.Shutdown(ctx)
		if <-lost {
			s.Error("the client was lost by the front's own end")
		}
	})
}
