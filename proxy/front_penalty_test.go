package proxy

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// strict has the penalties of a policy that says nothing of them, with changes.
func strict(change func(*policy.Penalties)) func(*FrontOptions) {
	return func(o *FrontOptions) {
		rules := policy.DefaultPenalties()
		if change != nil {
			change(&rules)
		}
		o.Penalties = func() policy.Penalties { return rules }
	}
}

// from is an attempt to log in from an address of the test's choice.
func (s *site) from(ip string, key ssh.Signer) (*ssh.Client, error) {
	s.Helper()
	return clientOn(s.socketFrom(ip), s.config("nix", ssh.PublicKeys(key)))
}

// isOut says whether an address is turned away before anything else.
func (s *site) isOut(ip string) bool {
	s.Helper()
	conn := s.socketFrom(ip)
	defer conn.Close()
	const refused = "nixbastion: not" // shorter than our identification line
	line := make([]byte, len(refused))
	if _, err := io.ReadFull(conn, line); err != nil {
		s.Fatal(err)
	}
	return string(line) == refused
}

// Guards against who tries key after key, and against a penalty for others. Three
// refused logins are what OpenSSH takes, too.
func TestSourceThatFailsToLogInIsKeptOutForAWhile(t *testing.T) {
	inMemory(t, strict(nil), func(s *site) {
		for range 3 {
			if s.isOutAfter("10.9.0.1", 0) {
				s.Fatal("kept out too early")
			}
			s.from("10.9.0.1", testKey("stranger"))
		}
		s.settle(nil)
		if _, err := s.from("10.9.0.1", testKey("alice")); err == nil {
			s.Error("logged in from a source that is kept out")
		}
		s.logged("ssh source is kept out", "addr", "10.9.0.1", "source", "10.9.0.1/32")
		s.logged("ssh connection refused: its source failed to log in", "addr", "10.9.0.1")
		if client, err := s.from("10.9.0.2", testKey("alice")); err != nil {
			s.Errorf("another source: %v", err)
		} else {
			client.Close()
		}
		if n := s.front.refusals.counts()[RefusedPenalty]; n != 1 {
			s.Errorf("%d refusals are counted, want 1", n)
		}
		time.Sleep(16 * time.Second)
		if client, err := s.from("10.9.0.1", testKey("alice")); err != nil {
			s.Errorf("after the penalty: %v", err)
		} else {
			client.Close()
		}
	})
}

// isOutAfter asks the front itself, which costs the source nothing.
func (s *site) isOutAfter(ip string, wait time.Duration) bool {
	time.Sleep(wait)
	synctest.Wait()
	return s.front.penalties.left(netip.MustParseAddr(ip)) > 0
}

// Guards against ways to end a login that cost nothing, and against ones that cost
// more than they should.
func TestEachOffenceHasItsPenalty(t *testing.T) {
	for name, c := range map[string]struct {
		limits Limits
		offend func(s *site)
		want   time.Duration
	}{
		"refused key": {offend: func(s *site) { s.from("10.9.0.1", testKey("stranger")) }, want: 5 * time.Second},
		"no key":      {offend: func(s *site) { clientOn(s.socketFrom("10.9.0.1"), s.config("nix")) }, want: time.Second},
		"no word":     {offend: func(s *site) { s.socketFrom("10.9.0.1").Close() }, want: time.Second},
		"no SSH": {offend: func(s *site) {
			conn := s.socketFrom("10.9.0.1")
			io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
			io.Copy(io.Discard, conn)
		}, want: time.Second},
		"no end": {offend: func(s *site) { io.Copy(io.Discard, s.socketFrom("10.9.0.1")) }, want: 10 * time.Second},
		"login": {offend: func(s *site) {
			client, err := s.from("10.9.0.1", testKey("alice"))
			if err != nil {
				s.Fatal(err)
			}
			client.Close()
		}},
		"too many connections": {limits: Limits{ConnectionsPerPrincipal: 1}, offend: func(s *site) {
			s.from("10.9.0.2", testKey("alice"))
			if _, err := s.from("10.9.0.1", testKey("alice")); err == nil {
				s.Error("logged in twice")
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, func(o *FrontOptions) { strict(nil)(o); o.Limits = c.limits }, func(s *site) {
				c.offend(s)
				synctest.Wait()
				p := s.front.penalties
				p.mu.Lock()
				defer p.mu.Unlock()
				got := time.Duration(0)
				if g, ok := p.guilty.Peek(netip.MustParsePrefix("10.9.0.1/32")); ok {
					got = time.Until(g.until)
				}
				if got != c.want {
					s.Errorf("the penalty is %s, want %s", got, c.want)
				}
			})
		})
	}
}

// Guards against who finds a way to bring our code down, and uses it again and again.
func TestCrashBeforeTheLoginKeepsOutAtOnce(t *testing.T) {
	inMemory(t, func(o *FrontOptions) {
		strict(nil)(o)
		o.Offered = func(ssh.PublicKey, netip.Addr) error { panic("a defect") }
	}, func(s *site) {
		s.from("10.9.0.1", testKey("alice"))
		s.settle(nil)
		if got := s.front.penalties.left(netip.MustParseAddr("10.9.0.1")); got != 90*time.Second {
			s.Errorf("kept out for %s, want 90s", got)
		}
		s.logged("panic", "where", "connection", "panic", "a defect")
		if got := s.held(); got != (holdings{slots: 1}) {
			s.Errorf("%+v is left", got)
		}
	})
}

// Guards against an office that is kept out, with all its builds, for one wrong key
// in it.
func TestSourceOfALoggedInClientIsNotKeptOut(t *testing.T) {
	inMemory(t, strict(nil), func(s *site) {
		client, err := s.from("10.9.0.1", testKey("alice"))
		if err != nil {
			s.Fatal(err)
		}
		for range 10 {
			s.from("10.9.0.1", testKey("stranger"))
		}
		s.settle(nil)
		if s.isOut("10.9.0.1") {
			s.Error("kept out although alice is logged in from there")
		}
		client.Close()
		if !s.isOutAfter("10.9.0.1", 0) {
			s.Error("not kept out after alice has left")
		}
	})
}

// Guards against penalties that grow without end, that are forgotten too early, and
// that a change of the policy does not reach.
func TestPenaltiesAddUpToTheLongestAndEnd(t *testing.T) {
	var rules policy.Penalties
	inMemory(t, func(o *FrontOptions) {
		rules = policy.DefaultPenalties()
		rules.Max = 40 * time.Second
		o.Penalties = func() policy.Penalties { return rules }
	}, func(s *site) {
		p := s.front.penalties
		addr := netip.MustParseAddr("2001:db8::1")
		for range 20 {
			p.add(addr, offenceAuthFail)
		}
		neighbour := netip.MustParseAddr("2001:db8::ffff") // of the same /64
		if got := p.left(neighbour); got != 40*time.Second {
			s.Errorf("kept out for %s, want 40s", got)
		}
		if got := p.left(netip.MustParseAddr("2001:db8:0:1::1")); got != 0 {
			s.Errorf("another /64 is kept out for %s", got)
		}
		time.Sleep(40 * time.Second)
		if got := p.left(addr); got != 0 || p.guilty.Len() != 0 {
			s.Errorf("kept out for %s, and %d are remembered", got, p.guilty.Len())
		}
		p.add(addr, offenceAuthFail)
		if got := p.left(addr); got != 0 {
			s.Errorf("kept out for %s after one failure: what is over counts", got)
		}
		p.add(addr, offenceCrash)
		rules.Exempt = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
		if got := p.left(addr); got != 0 {
			s.Errorf("exempt, and kept out for %s", got)
		}
		rules.Exempt = nil
		if got := p.left(addr); got == 0 {
			s.Error("not kept out, and not exempt any more")
		}
		rules.Off = true
		if got := p.left(addr); got != 0 {
			s.Errorf("off, and kept out for %s", got)
		}
	})
}

// Guards against memory for addresses without number.
func TestPenalisedSourcesAreBounded(t *testing.T) {
	p := newPenalties(policy.DefaultPenalties)
	addr := netip.MustParseAddr("10.0.0.0")
	for range maxPenalised + 100 {
		p.add(addr, offenceCrash)
		addr = addr.Next()
	}
	if got := p.guilty.Len(); got != maxPenalised {
		t.Errorf("%d sources are remembered, want %d", got, maxPenalised)
	}
	if p.left(netip.MustParseAddr("10.0.0.0")) != 0 || p.left(addr.Prev()) == 0 {
		t.Error("the oldest is remembered, or the newest is not")
	}
}

// Guards against a flood of refusals that fills the disk with lines, and against lines
// that are left out without a word.
func TestRefusalsAreLoggedAtABoundedRate(t *testing.T) {
	inMemory(t, strict(nil), func(s *site) {
		s.front.penalties.add(netip.MustParseAddr("10.9.0.1"), offenceCrash)
		for range 100 {
			s.isOut("10.9.0.1")
		}
		time.Sleep(2 * time.Second)
		s.isOut("10.9.0.1")
		lines := s.book.records(s, "ssh connection refused: its source failed to log in")
		if len(lines) != refusalLines+1 {
			s.Fatalf("%d lines for 101 refusals, want %d", len(lines), refusalLines+1)
		}
		if got := lines[refusalLines]["unlogged"]; got != float64(100-refusalLines) {
			s.Errorf("the last line says that %v were not logged, want %d", got, 100-refusalLines)
		}
		if n := s.front.refusals.counts()[RefusedPenalty]; n != 101 {
			s.Errorf("%d are counted, want 101", n)
		}
	})
}

// Guards against a client that opens connections without end, each at the cost of a
// handshake.
func TestPrincipalOpensOnlySoManyConnectionsAMinute(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		s.roster.set(Grant{Principal: "alice", ConnectionsPerMinute: 60}, testKey("alice"))
		var banner string
		config := s.config("nix", ssh.PublicKeys(testKey("alice")))
		config.BannerCallback = func(message string) error { banner = message; return nil }
		opened := 0
		for range 100 {
			if client, err := s.dialConfig(config); err == nil {
				opened++
				client.Close()
			}
		}
		if opened != 60 || !strings.Contains(banner, "alice opened more than 60 connections in a minute") {
			s.Errorf("%d connections were opened, and the client was told %q", opened, banner)
		}
		s.works(s.login("nix", testKey("root")))
		time.Sleep(time.Second)
		s.login("nix", testKey("alice")).Close()
		if n := s.front.refusals.counts()[RefusedRate]; n != 40 {
			s.Errorf("%d refusals are counted, want 40", n)
		}
		if n := s.held().principals; n != 1 { // root
			s.Errorf("%d principals hold connections, want 1", n)
		}
	})
}
