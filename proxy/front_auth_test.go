package proxy

import (
	"crypto/rsa"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func newRaw(s *site) *rawClient {
	s.Helper()
	c := newRawClient(s, s.socket(), rawIdent)
	c.startAuth(s)
	return c
}

// rawSession runs a command on a raw client that is logged in, and returns what
// it prints first.
func rawSession(s *site, c *rawClient, command string) string {
	s.Helper()
	c.must(s, &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10})
	confirm := c.next(s)
	if confirm[0] != msgOpenConfirm {
		s.Fatalf("open answered with message %d", confirm[0])
	}
	c.must(s, &channelRequest{Channel: 0, Type: "exec", Payload: ssh.Marshal(struct{ C string }{command})})
	var data struct {
		Channel uint32 `sshtype:"94"`
		Text    string
	}
	for {
		packet := c.next(s)
		if packet[0] != 94 {
			continue
		}
		if err := ssh.Unmarshal(packet, &data); err != nil {
			s.Fatal(err)
		}
		return data.Text
	}
}

type channelOpen struct {
	Type      string `sshtype:"90"`
	Channel   uint32
	Window    uint32
	MaxPacket uint32
	Data      []byte `ssh:"rest"`
}

type channelRequest struct {
	Channel   uint32 `sshtype:"98"`
	Type      string
	WantReply bool
	Payload   []byte `ssh:"rest"`
}

// Guards against G1: a library that fixes the user at the first attempt lets
// alice in as root, or root's sessions run as alice.
func TestUserSwitchDuringLoginCannotChangeTheIdentity(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := newRaw(s)
		methods(s, c.offerKey(s, "alice", testKey("stranger").PublicKey()))
		alice := testKey("alice")
		if reply := c.signIn(s, "root", alice.PublicKey(), alice); reply[0] != msgAuthSuccess {
			s.Fatalf("login answered with message %d", reply[0])
		}
		want := "alice " + fingerprint(alice) + " data of alice"
		if got := rawSession(s, c, "whoami"); got != want {
			s.Errorf("session runs as %q, want %q: the owner of the verified key", got, want)
		}
		s.logged("ssh login", "principal", "alice", "user", "root", "key", fingerprint(alice))
	})
}

// Guards against CVE-2024-45337: root's key is offered, which proves nothing, and
// then alice logs in with hers.
func TestIdentityIsTheVerifiedKeyWhateverWasOffered(t *testing.T) {
	root, alice := testKey("root"), testKey("alice")
	for name, offer := range map[string]func(s *site, c *rawClient){
		"another's key first": func(s *site, c *rawClient) { c.offerKey(s, "root", root.PublicKey()) },
		"another's key last": func(s *site, c *rawClient) {
			c.offerKey(s, "root", alice.PublicKey())
			c.offerKey(s, "root", root.PublicKey())
		},
		"a stranger's key": func(s *site, c *rawClient) { c.offerKey(s, "root", testKey("stranger").PublicKey()) },
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				c := newRaw(s)
				offer(s, c)
				if reply := c.signIn(s, "root", alice.PublicKey(), alice); reply[0] != msgAuthSuccess {
					s.Fatalf("login answered with message %d", reply[0])
				}
				if got := rawSession(s, c, "whoami"); !strings.HasPrefix(got, "alice ") {
					s.Errorf("session runs as %q, want alice", got)
				}
			})
		})
	}
}

// Guards against a key that is accepted without proof: root's public key with
// alice's signature, after alice's own was found to be good.
func TestAnotherUsersKeyWithoutItsSignatureIsRefused(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := newRaw(s)
		c.offerKey(s, "root", testKey("root").PublicKey())
		c.must(s, c.signedRequest("root", testKey("root").PublicKey(), testKey("alice")))
		if packet, err := c.read(); err == nil {
			s.Fatalf("a foreign signature was answered with message %d", packet[0])
		}
		s.logged("ssh login refused", "addr", "10.1.0.1", "user", "root", "keys", fingerprint(testKey("root")), "reason", "signature")
	})
}

// Guards against G2: gliderlabs/ssh lets everybody in whose server has none of
// its own key handlers.
func TestNobodyGetsInWithoutAKey(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := newRaw(s)
		for range 3 {
			if got := methods(s, c.auth(s, "alice", "none", nil)); !slices.Equal(got, []string{"publickey"}) {
				s.Errorf("refusal offers %q, want publickey alone", got)
			}
		}
		c.conn.Close()
		s.logged("ssh login refused", "addr", "10.1.0.1", "user", "alice", "reason", "only public keys")
	})
}

// Guards against a way in besides keys that are known.
func TestStrangersAreRefusedAndLoggedInOneLine(t *testing.T) {
	interactive := ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
		return make([]string, len(questions)), nil
	})
	for _, c := range []struct {
		name string
		auth []ssh.AuthMethod
		keys string
	}{
		{"unknown key", []ssh.AuthMethod{ssh.PublicKeys(testKey("stranger"))}, fingerprint(testKey("stranger"))},
		{"password", []ssh.AuthMethod{ssh.Password("alice")}, ""},
		{"keyboard-interactive", []ssh.AuthMethod{interactive}, ""},
		{"nothing at all", nil, ""},
		{"two unknown keys", []ssh.AuthMethod{ssh.PublicKeys(testKey("a"), testKey("b"))}, fingerprint(testKey("a")) + "," + fingerprint(testKey("b"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				if _, err := s.dialConfig(s.config("alice", c.auth...)); err == nil {
					s.Fatal("logged in")
				}
				record := s.logged("ssh login refused", "addr", "10.1.0.1", "user", `"alice"`, "client", "SSH-2.0-Go")
				if record["keys"] != c.keys {
					s.Errorf("logged keys %q, want %q", record["keys"], c.keys)
				}
				if n := strings.Count(s.book.String(), "\n"); n != 1 {
					s.Errorf("%d log lines, want one:\n%s", n, s.book)
				}
			})
		})
	}
}

// Guards against a client that speaks password or keyboard-interactive although
// neither is offered; an ordinary one would not even try.
func TestMethodsThatAreNotOfferedAreRefused(t *testing.T) {
	for method, rest := range map[string][]byte{
		"password":             ssh.Marshal(struct{ Change, Password string }{"", "x"})[3:],
		"keyboard-interactive": ssh.Marshal(struct{ Language, Methods string }{}),
		"hostbased":            []byte("x"),
		"gssapi-with-mic":      {0xff, 0xff, 0xff, 0xff},
		"\x1b[31mnone\n":       nil,
	} {
		t.Run(fmt.Sprintf("%q", method), func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				c := newRaw(s)
				methods(s, c.auth(s, "alice", method, rest))
				c.conn.Close()
				s.logged("ssh login refused", "addr", "10.1.0.1", "user", `"alice"`)
				s.oneLogLine()
			})
		})
	}
}

// oneLogLine expects a log of one line without control bytes.
func (s *site) oneLogLine() {
	s.Helper()
	text := strings.TrimSuffix(s.book.String(), "\n")
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		s.Errorf("log is not one line of plain ASCII: %q", text)
	}
}

// Guards against forged log lines and terminal escapes from names of the peer's
// choice, and against lines without bound.
func TestTextOfThePeerIsQuotedInTheLog(t *testing.T) {
	hostile := "eve\"\n{\"msg\":\"ssh login\"}\x1b]0;\x07\u202e\xff addr=1.2.3.4 " + strings.Repeat("x", 2000)
	t.Run("user of a refused login", func(t *testing.T) {
		inMemory(t, nil, func(s *site) {
			if _, err := s.dial(hostile, testKey("stranger")); err == nil {
				s.Fatal("logged in")
			}
			record := s.logged("ssh login refused", "addr", "10.1.0.1", "user", `eve\"\n{`)
			s.oneLogLine()
			if n := len(record["user"].(string)); n > 4*maxPeerText {
				s.Errorf("%d bytes of a user name in the log", n)
			}
		})
	})
	t.Run("user of a login", func(t *testing.T) {
		inMemory(t, nil, func(s *site) {
			s.login(hostile[:200], testKey("alice"))
			s.logged("ssh login", "addr", "10.1.0.1", "principal", "alice", "user", `eve\"\n{`)
			s.oneLogLine()
		})
	})
	t.Run("version string", func(t *testing.T) {
		inMemory(t, nil, func(s *site) {
			c := newRawClient(s, s.socket(), "SSH-2.0-x\" addr=1.2.3.4 \u202e\xff"+strings.Repeat("y", 150))
			c.startAuth(s)
			methods(s, c.auth(s, "eve", "none", nil))
			c.conn.Close()
			s.logged("ssh login refused", "addr", "10.1.0.1", "client", `SSH-2.0-x\" addr=1.2.3.4 \u202e\xff`)
			s.oneLogLine()
		})
	})
	t.Run("no SSH at all", func(t *testing.T) {
		inMemory(t, nil, func(s *site) {
			conn := s.socket()
			fmt.Fprintf(conn, "GET /\x1b[2J HTTP/1.1\r\nHost: x\r\n\r\n")
			closedAfter(conn)
			s.logged("ssh handshake failed", "addr", "10.1.0.1", "reason", "not an SSH 2.0 identification line")
			s.oneLogLine()
		})
	})
	t.Run("disconnect message", func(t *testing.T) {
		inMemory(t, nil, func(s *site) {
			c := newRaw(s)
			c.must(s, struct {
				Reason  uint32 `sshtype:"1"`
				Message string
				Lang    string
			}{11, "bye\n{\"msg\":\"x\"}\x1b[2J" + strings.Repeat("z", 1000), ""})
			closedAfter(c.conn)
			s.logged("ssh handshake failed", "addr", "10.1.0.1")
			s.oneLogLine()
		})
	})
}

// Guards against a revoked key that goes on working through a connection that is
// open already, as masters of OpenSSH keep them.
func TestRemovedKeyIsRefusedAtOnce(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		alice := testKey("alice")
		client := s.login("nix", alice)
		s.works(client)
		s.roster.remove(alice)
		if _, err := client.NewSession(); err == nil || !strings.Contains(err.Error(), "not accepted any more") {
			s.Errorf("next session on a live connection: %v, want a refusal that says why", err)
		}
		if _, err := s.dial("nix", alice); err == nil {
			s.Error("next login works")
		}
		s.logged("ssh session refused", "addr", "10.1.0.1", "key", fingerprint(alice))
		s.logged("ssh login refused", "addr", "10.1.0.1", "keys", fingerprint(alice))
	})
}

// Guards against a grant of yesterday: what a key is worth is asked per session.
func TestChangedGrantCountsForTheNextSession(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		alice := testKey("alice")
		client := s.login("nix", alice)
		s.roster.set(Grant{Principal: "alice", Data: "less than before"}, alice)
		if got, _, _ := s.run(client, "whoami"); !strings.HasSuffix(got, "less than before") {
			s.Errorf("session has %q, want the new grant", got)
		}
	})
}

// Guards against MaxAuthTries of 6: agents offer all they hold.
func TestAgentWithTwelveKeysGetsToItsLast(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		var keys []ssh.Signer
		for i := range 11 {
			keys = append(keys, testKey(fmt.Sprint("spare ", i)))
		}
		s.works(s.login("nix", append(keys, testKey("alice"))...))
	})
}

// Guards against guessing without end on one connection.
func TestAuthTriesAreBounded(t *testing.T) {
	inMemory(t, withLimits(Limits{AuthTries: 5}), func(s *site) {
		c := newRaw(s)
		for i := range 6 {
			c.must(s, c.signedRequest("alice", testKey(fmt.Sprint(i)).PublicKey(), testKey(fmt.Sprint(i))))
			if _, err := c.read(); err != nil {
				if i != 4 {
					s.Errorf("disconnected at attempt %d, want the fifth", i+1)
				}
				break
			}
		}
		if s.roster.asked != 5 {
			s.Errorf("%d keys were looked up, want 5", s.roster.asked)
		}
	})
}

// Guards against an offer that is repeated for ever: offers of a good key are no
// failures.
func TestOffersAreBounded(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		c := newRaw(s)
		offers := 0
		for ; offers < 1000; offers++ {
			c.write(ssh.Marshal(offerOf(fmt.Sprint(offers), testKey("alice").PublicKey())))
			if _, err := c.read(); err != nil {
				break
			}
		}
		if offers > 128 {
			s.Errorf("%d offers were answered", offers)
		}
	})
}

// Guards against messages of the connection protocol before the login
// (CVE-2025-32433 of another server).
func TestChannelMessagesBeforeTheLoginEndTheConnection(t *testing.T) {
	for name, msg := range map[string]any{
		"channel open": &channelOpen{Type: "session", Window: 1 << 20, MaxPacket: 32 << 10},
		"exec":         &channelRequest{Type: "exec", Payload: ssh.Marshal(struct{ C string }{"say pwned"})},
		"global request": struct {
			Type string `sshtype:"80"`
			Want bool
		}{"tcpip-forward", true},
		"auth success": struct {
			Empty []byte `sshtype:"52" ssh:"rest"`
		}{},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				c := newRaw(s)
				c.must(s, msg)
				if packet, err := c.read(); err == nil {
					s.Errorf("answered with message %d", packet[0])
				}
				if n := len(s.book.records(s, "ssh login")); n != 0 {
					s.Error("logged in")
				}
			})
		})
	}
}

// Guards against a user name without bound, which travels with the identity.
func TestLongUserNamesAreRefused(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		if _, err := s.dial(strings.Repeat("u", maxUserBytes+1), testKey("alice")); err == nil {
			s.Error("logged in with a user name that is too long")
		}
		got, _, _ := s.run(s.login(strings.Repeat("u", maxUserBytes), testKey("alice")), "user")
		if len(got) != maxUserBytes {
			s.Errorf("user name of %d bytes arrived, want %d", len(got), maxUserBytes)
		}
	})
}

// Guards against keys that are weak, or that cost CPU before anybody is known,
// even if the policy names them: as such, in a certificate, or behind one.
func TestUnfitKeysAreRefusedWhateverThePolicySays(t *testing.T) {
	small, good := rsaSigner(t, 1024), rsaSigner(t, 2048)
	inMemory(t, nil, func(s *site) {
		for what, c := range map[string]struct {
			key  ssh.Signer
			good bool
		}{
			"RSA key of 1024 bits":                   {small, false},
			"RSA key of 2048 bits":                   {good, true},
			"certificate":                            {certified(s, testKey("certified"), testKey("ca"), nil), true},
			"certificate for an RSA key":             {certified(s, good, good, nil), true},
			"certificate for a key of 1024 bits":     {certified(s, small, testKey("ca"), nil), false},
			"certificate by a key of 1024 bits":      {certified(s, testKey("certified"), small, nil), false},
			"certificate for and by such keys alike": {certified(s, small, small, nil), false},
		} {
			s.roster.add("alice", c.key)
			client, err := s.dial("nix", c.key)
			if (err == nil) != c.good {
				s.Errorf("%s: %v", what, err)
			}
			if err == nil {
				s.works(client)
				client.Close()
			}
		}
	})
	huge, err := ssh.NewPublicKey(&rsa.PublicKey{N: new(big.Int).Lsh(good.key.N, 8192), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	fine := testKey("alice").PublicKey()
	for _, key := range []ssh.PublicKey{huge, &ssh.Certificate{Key: huge, SignatureKey: fine}, &ssh.Certificate{Key: fine, SignatureKey: huge}} {
		if err := checkUserKey(key); err == nil {
			t.Errorf("%T with an RSA key of more than 8192 bits accepted", key)
		}
	}
}

// Guards against signatures with SHA-1.
func TestSignaturesWithSHA1AreRefused(t *testing.T) {
	key := rsaSigner(t, 2048)
	sha1Only, err := ssh.NewSignerWithAlgorithms(key.AlgorithmSigner, []string{ssh.KeyAlgoRSA})
	if err != nil {
		t.Fatal(err)
	}
	inMemory(t, nil, func(s *site) {
		s.roster.add("alice", key)
		if _, err := s.dial("nix", sha1Only); err == nil {
			s.Error("logged in with ssh-rsa")
		}
		s.works(s.login("nix", key))
	})
}

// Guards against one principal that takes all connections.
func TestConnectionsPerPrincipalAreBounded(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		alice := testKey("alice")
		s.roster.set(Grant{Principal: "alice", MaxConnections: 2}, alice)
		first := s.login("nix", alice)
		s.login("nix", alice)
		var banner string
		config := s.config("nix", ssh.PublicKeys(alice))
		config.BannerCallback = func(text string) error { banner += text; return nil }
		if _, err := s.dialConfig(config); err == nil {
			s.Fatal("third connection accepted")
		}
		if !strings.Contains(banner, "alice has 2 connections already") {
			s.Errorf("banner is %q, want the reason", banner)
		}
		// What fail2ban counts is no line about a key that may come in.
		s.logged("ssh login turned away", "addr", "10.1.0.1", "keys", fingerprint(alice), "reason", "alice has 2 connections already")
		if n := len(s.book.records(s, "ssh login refused")); n != 0 {
			s.Errorf("%d lines that count against the address", n)
		}
		s.works(s.login("nix", testKey("root")))
		first.Close()
		s.settle(nil)
		s.works(s.login("nix", alice))
	})
}

// Guards against a login that takes for ever, whatever it says meanwhile. The
// clock runs from accept, not from the last byte.
func TestLoginGraceRunsFromAccept(t *testing.T) {
	for name, stage := range map[string]func(s *site) net.Conn{
		"silent":       func(s *site) net.Conn { return s.socket() },
		"in the ident": func(s *site) net.Conn { return s.saying("SSH-2.0-") },
		"before kex":   func(s *site) net.Conn { return s.saying("SSH-2.0-x\r\n") },
		"before auth":  func(s *site) net.Conn { return newRawClient(s, s.socket(), rawIdent).conn },
		"after an offer": func(s *site) net.Conn {
			c := newRaw(s)
			c.offerKey(s, "x", testKey("stranger").PublicKey())
			return c.conn
		},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				conn := stage(s)
				s.about("closed", closedAfter(conn), 20*time.Second)
				s.settle(nil)
				if !strings.Contains(s.book.String(), "no login within 20s") {
					s.Errorf("the log does not say why:\n%s", s.book)
				}
			})
		})
	}
}
