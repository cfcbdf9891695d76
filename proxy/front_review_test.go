package proxy

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// reviewing has a Front dismiss whom it would not let in any more.
func reviewing(finish bool) func(*FrontOptions) {
	return func(o *FrontOptions) {
		authorize := o.Authorize
		o.Review = func(login *Login) *Dismissal {
			if _, err := authorize(login.Key, login.Remote.Addr()); err != nil {
				return &Dismissal{Reason: errors.New("you have to go"), Finish: finish}
			}
			return nil
		}
		o.ReviewJump = func(*Login, JumpConn) error { return nil }
	}
}

// Guards against a connection that lives on although its key is not let in any more,
// whatever it does, and against one that suffers for it.
func TestForbiddenConnectionsAreGoneWithinASecond(t *testing.T) {
	targets := &far{}
	inMemory(t, func(o *FrontOptions) { reviewing(false)(o); o.Jump = targets.jump }, func(s *site) {
		var gone []*ssh.Client
		enter := func(command string) {
			client := s.login("nix", testKey("root"))
			gone = append(gone, client)
			if command == "" {
				return
			}
			ch, requests := s.channel(client)
			go ssh.DiscardRequests(requests)
			s.request(ch, "exec", text(command))
		}
		for _, command := range []string{"", "cat", "wait", "finish", "pour"} { // pour fills a window that is never read
			enter(command)
		}
		jumper := s.login("nix", testKey("root"))
		gone = append(gone, jumper)
		targets.open(s, jumper)
		bystander := s.login("nix", testKey("alice"))
		still, requests := s.channel(bystander)
		go ssh.DiscardRequests(requests)
		s.request(still, "exec", text("cat"))
		synctest.Wait()

		s.roster.remove(testKey("root"))
		start := time.Now()
		if got := s.front.Review(); got != (Reviewed{Dismissed: len(gone)}) {
			s.Errorf("got %+v", got)
		}
		for i, client := range gone {
			if client.Wait(); time.Since(start) >= time.Second {
				s.Errorf("connection %d ended after %s", i, time.Since(start))
			}
		}
		synctest.Wait()
		if ended := s.book.records(s, "ssh connection ended"); len(ended) != len(gone) || !strings.Contains(s.book.String(), "dismissed: you have to go") {
			s.Errorf("%d ends in the log:\n%s", len(ended), s.book)
		}
		time.Sleep(time.Minute)
		io.WriteString(still, "still here")
		still.CloseWrite()
		if got, err := io.ReadAll(still); string(got) != "still here" {
			s.Errorf("the bystander's session got %q (%v)", got, err)
		}
		s.works(bystander)
	})
}

// Guards against a dismissal that ends a command without a word, or without its exit
// status.
func TestDismissedCommandsHearWhy(t *testing.T) {
	var cause atomic.Value
	inMemory(t, func(o *FrontOptions) {
		reviewing(false)(o)
		o.Exec = func(ctx context.Context, x *Exec) int {
			<-ctx.Done()
			<-x.Stopping
			cause.Store(context.Cause(ctx).Error() + ", " + x.Dismissed().Error())
			io.WriteString(x.Stderr, "farewell")
			return 7
		}
	}, func(s *site) {
		client := s.login("nix", testKey("alice"))
		go func() {
			synctest.Wait()
			s.roster.remove(testKey("alice"))
			s.front.Review()
		}()
		if _, stderr, status := s.run(client, "x"); stderr != "farewell" || status != 7 {
			s.Errorf("got %q and status %d", stderr, status)
		}
		if got := cause.Load(); got != "you have to go, you have to go" {
			s.Errorf("cause: %v", got)
		}
		if after := ends(client); after != 0 { // nothing is left to wait for
			s.Errorf("the connection ended %s after its command", after)
		}
	})
}

// Guards against a connection that breaks in the middle of an upload without a word.
func TestDismissedClientsThatSendAreToldToo(t *testing.T) {
	inMemory(t, reviewing(false), func(s *site) {
		client := s.login("nix", testKey("alice"))
		var sending []ssh.Channel
		for range 2 {
			ch, requests := s.channel(client)
			go ssh.DiscardRequests(requests)
			s.request(ch, "exec", text("cat"))
			sending = append(sending, ch)
		}
		synctest.Wait()
		s.roster.remove(testKey("alice"))
		s.front.Review()
		for _, ch := range sending {
			if told, err := io.ReadAll(ch.Stderr()); string(told) != "nixbastion: you have to go\n" {
				s.Errorf("told %q, %v", told, err)
			}
		}
	})
}

// Guards against a last word in the middle of what a command says: a channel is not for
// two writers at once, and either could overwrite the other's packet.
func TestLastWordWaitsForWhatIsBeingSaid(t *testing.T) {
	said := strings.Repeat("a line of a log\n", 3<<20/16) // more than a window
	inMemory(t, func(o *FrontOptions) {
		reviewing(false)(o)
		o.Exec = func(_ context.Context, x *Exec) int {
			io.WriteString(x.Stderr, said)
			return 0
		}
	}, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("x"))
		synctest.Wait()
		s.roster.remove(testKey("alice"))
		s.front.Review()
		time.Sleep(tellPatience + time.Millisecond)
		synctest.Wait()
		got, err := io.ReadAll(ch.Stderr())
		if last, whole := strings.CutPrefix(string(got), said); err != nil || !whole || last != "" && last != "nixbastion: you have to go\n" {
			s.Errorf("%d bytes, %v; of what the command said all: %t, then %.100q", len(got), err, whole, last)
		}
	})
}

// Guards against work that is to be finished and is not, against new work on such a
// connection, and against one that never ends.
func TestConnectionsThatFinishTheirWorkDoNothingElse(t *testing.T) {
	var done chan struct{} // of the bubble
	targets := &far{}
	inMemory(t, func(o *FrontOptions) {
		reviewing(true)(o)
		o.Jump = targets.jump
		o.Exec = func(ctx context.Context, x *Exec) int {
			x.Working.Add(1)
			select {
			case <-done:
			case <-ctx.Done():
				return 1
			}
			x.Working.Add(-1)
			<-x.Stopping
			return 0
		}
	}, func(s *site) {
		done = make(chan struct{})
		client, idle := s.login("nix", testKey("alice")), s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		s.request(ch, "exec", text("work"))
		channel, _ := targets.open(s, client)
		synctest.Wait()
		s.roster.remove(testKey("alice"))
		if got := s.front.Review(); got != (Reviewed{Dismissed: 1, Finishing: 1}) {
			s.Errorf("got %+v", got)
		}
		idle.Wait()
		if _, err := channel.Read(make([]byte, 1)); err != io.EOF {
			s.Errorf("the jump: %v", err)
		}
		if _, err := client.NewSession(); err == nil || !strings.Contains(err.Error(), "you have to go") {
			s.Errorf("another session: %v", err)
		}
		time.Sleep(time.Hour)
		if got := s.front.Review(); got != (Reviewed{}) { // it is finishing already
			s.Errorf("the second time: %+v", got)
		}
		close(done)
		start := time.Now()
		if status := <-requests; status == nil || status.Type != "exit-status" || status.Payload[3] != 0 {
			s.Errorf("got %+v", status)
		}
		client.Wait()
		if after := time.Since(start); after < finishQuiet || after > finishQuiet+2*finishInterval {
			s.Errorf("the connection ended %s after its work", after)
		}
	})
}

// working has every command be work that is finished before its client goes.
func working(o *FrontOptions) {
	reviewing(true)(o)
	o.Exec = func(_ context.Context, x *Exec) int {
		x.Working.Add(1)
		defer x.Working.Add(-1)
		return runTestCommand(context.Background(), x)
	}
}

// Guards against a connection that lives on although it has to go at once, since a look
// whether its work is done was on the way.
func TestEndAtOnceIsNotPutOff(t *testing.T) {
	inMemory(t, working, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("pour")) // into a window that is never read
		synctest.Wait()
		s.roster.remove(testKey("alice"))
		s.front.Review()
		var c *frontConn
		s.front.each(func(one *frontConn) { c = one })
		looked := make(chan struct{})
		c.mu.Lock()
		go func() { defer close(looked); c.lookWhetherDone(&finishing{}) }()
		for range 1000 { // it comes to the lock
			runtime.Gosched()
		}
		c.leaving.Store(&Dismissal{Reason: errors.New("revoked")})
		c.part(errors.New("revoked"))
		c.mu.Unlock()
		<-looked
		if after := ends(client); after >= time.Second {
			s.Errorf("the connection ended after %s", after)
		}
	})
}

// Guards against a connection that is sent away although its key came back meanwhile.
func TestWhoIsLetInAgainStays(t *testing.T) {
	inMemory(t, working, func(s *site) {
		client := s.login("nix", testKey("alice"))
		ch, requests := s.channel(client)
		go ssh.DiscardRequests(requests)
		s.request(ch, "exec", text("cat"))
		synctest.Wait()
		s.roster.remove(testKey("alice"))
		s.front.Review()
		s.roster.add("alice", testKey("alice"))
		s.front.Review()
		time.Sleep(time.Hour)
		s.works(client)
	})
}

// Guards against somebody who comes in by the old policy while everybody else is looked
// at: with a login, a session or a jump.
func TestNobodySlipsInDuringAReview(t *testing.T) {
	for _, step := range []string{"login", "session", "jump"} {
		t.Run(step, func(t *testing.T) {
			var hold atomic.Bool
			var held, letGo chan struct{} // of the bubble
			targets := &far{}
			inMemory(t, func(o *FrontOptions) {
				reviewing(false)(o)
				o.Jump = targets.jump
				o.Offered = func(ssh.PublicKey, netip.Addr) error { return nil }
				authorize := o.Authorize
				o.Authorize = func(key ssh.PublicKey, remote netip.Addr) (Grant, error) {
					grant, err := authorize(key, remote) // by the old policy
					if hold.CompareAndSwap(true, false) {
						close(held)
						<-letGo
					}
					return grant, err
				}
			}, func(s *site) {
				held, letGo = make(chan struct{}), make(chan struct{})
				var client *ssh.Client
				if step != "login" {
					client = s.login("nix", testKey("alice"))
				}
				hold.Store(true)
				done := make(chan error, 1)
				go func() {
					var err error
					switch step {
					case "login":
						client, err = s.dial("nix", testKey("alice"))
					case "session":
						_, _, err = client.OpenChannel("session", nil)
					case "jump":
						_, err = tryJump(client, "builder1", 22)
					}
					done <- err
				}()
				<-held
				s.roster.remove(testKey("alice"))
				first := s.front.Review()
				close(letGo)
				if err := <-done; err == nil {
					start := time.Now()
					if client.Wait(); time.Since(start) >= time.Second {
						s.Errorf("it stayed for %s", time.Since(start))
					}
				}
				if step == "login" && first.Dismissed != 0 {
					s.Errorf("somebody was dismissed before the login: %+v", first)
				}
			})
		})
	}
}

// Guards against a jump that goes on although its target is not listed any more, and
// against a connection that is lost for it.
func TestForbiddenJumpsEndAlone(t *testing.T) {
	targets := &far{}
	var forbidden atomic.Bool
	inMemory(t, func(o *FrontOptions) {
		reviewing(false)(o)
		o.Jump = targets.jump
		o.ReviewJump = func(_ *Login, conn JumpConn) error {
			if forbidden.Load() && conn == JumpConn(targets.near[0]) {
				return refuseJump("not listed")
			}
			return nil
		}
	}, func(s *site) {
		client := s.login("nix", testKey("alice"))
		first, _ := targets.open(s, client)
		second, there := targets.open(s, client)
		synctest.Wait()
		forbidden.Store(true)
		if got := s.front.Review(); got != (Reviewed{Jumps: 1}) {
			s.Errorf("got %+v", got)
		}
		if _, err := first.Read(make([]byte, 1)); err != io.EOF {
			s.Errorf("the forbidden jump: %v", err)
		}
		s.logged("ssh jump ended", "reason", "the policy has changed: jump refused: not listed")
		io.WriteString(there, "x")
		if n, err := second.Read(make([]byte, 1)); n != 1 {
			s.Errorf("the other jump: %v", err)
		}
		s.works(client)
	})
}

// Guards against a session that begins with what the old policy gave, or a jump that it
// allowed, while everybody else is looked at.
func TestNobodyBeginsSomethingByTheOldPolicy(t *testing.T) {
	for _, kind := range []string{"session", "jump"} {
		t.Run(kind, func(t *testing.T) {
			var hold, forbidden atomic.Bool
			var held, letGo chan struct{} // of the bubble
			targets := &far{}
			inMemory(t, func(o *FrontOptions) {
				o.Jump = targets.jump
				authorize := o.Authorize
				o.Authorize = func(key ssh.PublicKey, remote netip.Addr) (Grant, error) {
					grant, err := authorize(key, remote)
					if hold.CompareAndSwap(true, false) {
						close(held)
						<-letGo
					}
					return grant, err
				}
				o.Review = func(login *Login) *Dismissal {
					for _, running := range login.Running {
						if forbidden.Load() && running.Data == "data of alice" {
							return &Dismissal{Reason: errors.New("you have less now")}
						}
					}
					return nil
				}
				o.ReviewJump = func(*Login, JumpConn) error {
					if forbidden.Load() {
						return refuseJump("not listed")
					}
					return nil
				}
			}, func(s *site) {
				held, letGo = make(chan struct{}), make(chan struct{})
				client := s.login("nix", testKey("alice"))
				hold.Store(true)
				done := make(chan ssh.Channel, 1)
				go func() {
					open := func() (ssh.Channel, error) { return tryJump(client, "builder1", 22) }
					if kind == "session" {
						open = func() (ssh.Channel, error) {
							ch, requests, err := client.OpenChannel("session", nil)
							go ssh.DiscardRequests(requests)
							return ch, err
						}
					}
					ch, err := open()
					if err != nil {
						s.Error(err)
					}
					done <- ch
				}()
				<-held
				forbidden.Store(true)
				s.roster.set(Grant{Principal: "alice", Data: "less"}, testKey("alice"))
				if got := s.front.Review(); got != (Reviewed{}) {
					s.Errorf("got %+v", got)
				}
				close(letGo)
				ch := <-done
				start := time.Now()
				if _, err := ch.Read(make([]byte, 1)); err != io.EOF || time.Since(start) >= time.Second {
					s.Errorf("it stayed for %s; %v", time.Since(start), err)
				}
			})
		})
	}
}
