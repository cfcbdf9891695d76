package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// shutDown has a time limit.
func (s *site) shutDown(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return s.front.Shutdown(ctx)
}

// Guards against G12: a connection in its handshake that outlives the shutdown,
// and logs in then.
func TestShutdownEndsConnectionsInTheirHandshake(t *testing.T) {
	for name, stage := range map[string]func(s *site) net.Conn{
		"silent":      func(s *site) net.Conn { return s.socket() },
		"before kex":  func(s *site) net.Conn { return s.saying("SSH-2.0-x\r\n") },
		"before auth": func(s *site) net.Conn { return newRawClient(s, s.socket(), rawIdent).conn },
		"in auth": func(s *site) net.Conn {
			c := newRaw(s)
			c.offerKey(s, "x", testKey("alice").PublicKey())
			return c.conn
		},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				conn := stage(s)
				s.settle(nil)
				start := time.Now()
				if err := s.shutDown(time.Minute); err != nil {
					s.Errorf("shutdown: %v", err)
				}
				closedAfter(conn)
				s.about("shutdown", time.Since(start), 0)
				if n := s.held().conns; n != 0 {
					s.Errorf("%d connections are left", n)
				}
				if err := <-s.served; err != nil {
					s.Errorf("Serve returned %v, want nil", err)
				}
			})
		})
	}
}

// Guards against work that is cut, and against clients that keep a stopped front.
func TestShutdownWaitsForCommandsAndForNothingElse(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		idle := s.login("nix", testKey("alice"))
		working := s.login("nix", testKey("alice"))
		ch, requests := s.channel(working)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("finish"))
		s.settle(nil)
		done := make(chan error, 1)
		go func() { done <- s.shutDown(time.Hour) }()
		s.settle(nil)
		if ends(idle) != 0 {
			s.Error("an idle connection was kept for a while")
		}
		if got, _ := io.ReadAll(ch); string(got) != "finished" {
			s.Errorf("the command printed %q", got)
		}
		if err := <-done; err != nil {
			s.Errorf("shutdown: %v", err)
		}
		if _, err := s.mem.dial(s.mem.Addr().(*net.TCPAddr).AddrPort()); err == nil {
			s.Error("the listener is open")
		}
	})
}

// Guards against new work while the old one ends.
func TestNoNewSessionsDuringShutdown(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, _ := s.channel(client)
		s.request(ch, "exec", text("wait"))
		done := make(chan error, 1)
		go func() { done <- s.shutDown(time.Hour) }()
		s.settle(nil)
		if refusal := s.refusedFor(client, ssh.ResourceShortage); !strings.Contains(refusal.Message, "shutting down") {
			s.Errorf("refused with %q", refusal.Message)
		}
		ch.Close()
		if err := <-done; err != nil {
			s.Errorf("shutdown: %v", err)
		}
	})
}

// Guards against a command that never ends.
func TestShutdownRunsOutOfPatience(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, _ := s.channel(client)
		s.request(ch, "exec", text("wait"))
		s.settle(nil)
		start := time.Now()
		if err := s.shutDown(30 * time.Second); !errors.Is(err, context.DeadlineExceeded) {
			s.Errorf("shutdown: %v, want that time is up", err)
		}
		s.about("shutdown", time.Since(start), 30*time.Second)
		if s.held().conns != 0 {
			s.Error("a connection is left")
		}
	})
}

// Guards against a front that reports its end while commands still clean up.
func TestShutdownWaitsUntilCommandsReturned(t *testing.T) {
	const cleanup = 3 * time.Second
	returned := make(chan struct{}, 1)
	inMemory(t, func(o *FrontOptions) {
		o.Exec = func(ctx context.Context, _ *Exec) int {
			<-ctx.Done()
			time.Sleep(cleanup)
			returned <- struct{}{}
			return 0
		}
	}, func(s *site) {
		ch, _ := s.channel(s.login("nix", testKey("alice")))
		s.request(ch, "exec", text("x"))
		s.settle(nil)
		start := time.Now()
		if err := s.shutDown(time.Second); !errors.Is(err, context.DeadlineExceeded) {
			s.Errorf("shutdown: %v, want that time is up", err)
		}
		s.about("shutdown", time.Since(start), time.Second+cleanup)
		if len(returned) != 1 {
			s.Error("shutdown returned before the command did")
		}
	})
}

// Guards against a listener that is opened again by a late Serve.
func TestServeAfterShutdownClosesItsListener(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		if err := s.shutDown(time.Minute); err != nil {
			s.Fatal(err)
		}
		late := newMemListener()
		if err := s.front.Serve(context.Background(), late); err != nil {
			s.Errorf("Serve: %v, want nil", err)
		}
		select {
		case <-late.closed:
		default:
			s.Error("the listener is open")
		}
	})
}

// Guards against a door that closes on those who are in already: a reload of
// listeners must not end builds.
func TestEndOfServeLeavesConnectionsAlone(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		extra := newMemListener()
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- s.front.Serve(ctx, extra) }()
		conn, err := extra.dial(s.mem.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			s.Fatal(err)
		}
		client, err := clientOn(conn, s.config("nix", ssh.PublicKeys(testKey("alice"))))
		if err != nil {
			s.Fatal(err)
		}
		defer client.Close()
		cancel()
		if err := <-served; err != nil {
			s.Errorf("Serve: %v, want nil", err)
		}
		s.works(client)
	})
}

// Guards against a server that ends because one client left the queue early, or
// because descriptors were short for a moment.
func TestPassingErrorsOfAcceptEndNothing(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		for _, errno := range []syscall.Errno{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.EPROTO, syscall.EPERM, syscall.ENETDOWN} {
			s.mem.fail <- &net.OpError{Op: "accept", Err: errno}
		}
		s.works(s.login("nix", testKey("alice")))
		s.mem.fail <- &net.OpError{Op: "accept", Err: syscall.EBADF}
		if err := <-s.served; !errors.Is(err, syscall.EBADF) {
			s.Errorf("Serve: %v, want the error that does not pass", err)
		}
	})
}

// Guards against more connections than there are file descriptors: further ones
// wait in the listen queue.
func TestConnectionsBeyondTheLimitWait(t *testing.T) {
	inMemory(t, withLimits(Limits{Connections: 2}), func(s *site) {
		first := s.login("nix", testKey("alice"))
		s.login("nix", testKey("alice"))
		third := make(chan error, 1)
		go func() {
			client, err := s.dial("nix", testKey("alice"))
			if err == nil {
				client.Close()
			}
			third <- err
		}()
		time.Sleep(time.Minute)
		if len(third) != 0 {
			s.Error("a third connection was accepted")
		}
		first.Close()
		if err := <-third; err != nil {
			s.Errorf("the third connection, once there is room: %v", err)
		}
	})
}

// Guards against options that would let everybody in, or nobody know why not.
func TestFrontRefusesOptionsThatCannotBeMeant(t *testing.T) {
	whole := FrontOptions{
		HostKeys: []ssh.Signer{testKey("host")}, Exec: runTestCommand, Authorize: (&roster{}).authorize,
		Log: slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil)),
	}
	for name, spoil := range map[string]func(*FrontOptions){
		"no host key":    func(o *FrontOptions) { o.HostKeys = nil },
		"no Authorize":   func(o *FrontOptions) { o.Authorize = nil },
		"no Exec":        func(o *FrontOptions) { o.Exec = nil },
		"unknown cipher": func(o *FrontOptions) { o.Ciphers = []string{"aes128-cbc"} },
		"empty cipher":   func(o *FrontOptions) { o.Ciphers = []string{""} },
		"arcfour":        func(o *FrontOptions) { o.Ciphers = []string{ssh.CipherAES128GCM, "arcfour"} },
	} {
		opts := whole
		spoil(&opts)
		if _, err := NewFront(opts); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewFront(whole); err != nil {
		t.Errorf("whole options: %v", err)
	}
}
