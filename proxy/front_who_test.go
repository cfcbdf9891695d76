package proxy

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// Guards against connections that the admin does not see, that are seen before anybody
// has logged in or after they have ended, and against sessions that seem to do what
// they did before.
func TestConnectionsAreSeen(t *testing.T) {
	var step chan string // made in the bubble
	exec := func(_ context.Context, x *Exec) int {
		for operation := range step {
			x.Operates(operation)
		}
		return 0
	}
	inMemory(t, func(o *FrontOptions) { o.Exec = exec }, func(s *site) {
		step = make(chan string)
		stranger := s.saying("SSH-2.0-stranger\r\n")
		synctest.Wait()
		if seen := s.front.connections(); len(seen) != 0 {
			s.Errorf("before the login there is %+v", seen)
		}
		stranger.Close()
		began := time.Now()
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		if !s.request(ch, "exec", text("nix-daemon --stdio")) {
			s.Fatal("no command")
		}
		time.Sleep(time.Second)
		step <- "BuildDerivation hello"
		synctest.Wait()
		seen := s.front.connections()
		if len(seen) != 1 || seen[0].who.Principal != "alice" || seen[0].who.Fingerprint != ssh.FingerprintSHA256(testKey("alice").PublicKey()) || !seen[0].since.Equal(began) ||
			seen[0].received == 0 || seen[0].sent == 0 || len(seen[0].sessions) != 1 {
			s.Fatalf("there is %+v", seen)
		}
		if now := seen[0].sessions[0]; now.command != "nix-daemon --stdio" || now.operation != "BuildDerivation hello" || !now.since.Equal(began.Add(time.Second)) {
			s.Errorf("the session does %+v", now)
		}
		close(step)
		io.Copy(io.Discard, ch)
		synctest.Wait()
		if seen := s.front.connections(); len(seen) != 1 || len(seen[0].sessions) != 0 {
			s.Errorf("when its command has ended, but the client holds the channel, there is %+v", seen)
		}
		ch.Close()
		synctest.Wait()
		if seen := s.front.connections(); len(seen) != 1 || len(seen[0].sessions) != 0 {
			s.Errorf("when the session has ended there is %+v", seen)
		}
		client.Close()
		synctest.Wait()
		if seen := s.front.connections(); len(seen) != 0 {
			s.Errorf("when the connection has ended there is %+v", seen)
		}
	})
}

// Guards against an operation that is not named, or does not end.
func TestSessionsSayWhatTheyDo(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	near, far := net.Pipe()
	operations := make(chan string, 100)
	done := make(chan said)
	go func() {
		got := l.run("alice", "nix-daemon --stdio", func(x *Exec) {
			x.Stdin, x.Stdout = far, far
			x.Operates = func(operation string) { operations <- operation }
		})
		done <- got
	}()
	c, err := worker.NewClient(t.Context(), near, worker.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path, drv := labDrv("hello")
	if _, err := c.BuildDerivation(t.Context(), nix.Discard, path, drv, 0); err != nil {
		t.Fatal(err)
	}
	near.Close()
	<-done
	close(operations)
	var all []string
	for operation := range operations {
		all = append(all, operation)
	}
	if got := strings.Join(all, "|"); !strings.Contains(got, "|BuildDerivation|BuildDerivation hello|") || !strings.HasSuffix(got, "|") || all[0] != "" {
		t.Errorf("it says %q", got)
	}
}
