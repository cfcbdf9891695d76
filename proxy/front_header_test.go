package proxy

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/crypto/ssh"
)

const balancer = "10.7.0.1"

// balanced lists a balancer, and keeps who fails to log in out.
func balanced(o *FrontOptions) {
	strict(nil)(o)
	o.ProxyProtocol = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(balancer + "/32")} }
}

// header is what a balancer says of a client.
func header(t testing.TB, version byte, client string) string {
	t.Helper()
	from, to := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(client)), &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 22}
	if from.IP.To4() == nil {
		to.IP = net.ParseIP("2001:db8::22")
	}
	text, err := proxyproto.HeaderProxyFromAddrs(version, from, to).Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// through is a connection from an address that begins with a text.
func (s *site) through(ip, text string) net.Conn {
	s.Helper()
	conn := s.socketFrom(ip)
	if _, err := io.WriteString(conn, text); err != nil {
		s.Fatal(err)
	}
	return conn
}

// Guards against clients behind a balancer that all look like it: who logs in, whom
// the log names, and who is kept out is the client that the header names.
func TestListedBalancerSaysWhereTheClientIs(t *testing.T) {
	for _, version := range []byte{1, 2} {
		for _, addr := range []string{"192.0.2.5", "2001:db8::5"} {
			t.Run(fmt.Sprintf("v%d %s", version, addr), func(t *testing.T) {
				inMemory(t, balanced, func(s *site) {
					client := netip.AddrPortFrom(netip.MustParseAddr(addr), 4711).String()
					config := s.config("nix", ssh.PublicKeys(testKey("alice")))
					c, err := clientOn(s.through(balancer, header(s, version, client)), config)
					if err != nil {
						s.Fatalf("login: %v; the log:\n%s", err, s.book)
					}
					s.works(c)
					s.logged("ssh login", "addr", addr, "port", "4711")
					c.Close()
					s.logged("ssh connection ended", "addr", addr) // who is logged in is never kept out
					for range 4 {
						clientOn(s.through(balancer, header(s, version, client)), s.config("nix", ssh.PublicKeys(testKey("stranger"))))
					}
					s.logged("ssh source is kept out", "addr", addr)
					if _, err := clientOn(s.through(balancer, header(s, version, client)), config); err == nil {
						s.Error("a client that is kept out came through the balancer")
					}
					if c, err = clientOn(s.through(balancer, header(s, version, "192.0.2.6:1")), config); err != nil {
						s.Errorf("another client is kept out, too: %v", err)
					} else {
						c.Close()
					}
				})
			})
		}
	}
}

// atOnce is a connection whose first writes arrive as one.
type atOnce struct {
	net.Conn
	first []byte // nil once it was sent
}

func (c *atOnce) Write(p []byte) (int, error) {
	if c.first == nil {
		return c.Conn.Write(p)
	}
	c.first = append(c.first, p...)
	return len(p), nil
}

func (c *atOnce) Read(p []byte) (int, error) {
	if c.first != nil {
		if _, err := c.Conn.Write(c.first); err != nil {
			return 0, err
		}
		c.first = nil
	}
	return c.Conn.Read(p)
}

// Guards against a client whose first packet is lost as it came together with the
// balancer's header.
func TestWhatComesWithTheHeaderIsKept(t *testing.T) {
	for _, version := range []byte{1, 2} {
		for _, ident := range []string{rawIdent, rawIdent + strings.Repeat("x", 230)} {
			t.Run(fmt.Sprintf("v%d %d", version, len(ident)), func(t *testing.T) {
				inMemory(t, balanced, func(s *site) {
					conn := &atOnce{Conn: s.socketFrom(balancer), first: []byte(header(s, version, "192.0.2.5:4711"))}
					c := newRawClient(s, conn, ident)
					c.startAuth(s)
					if got := c.signIn(s, "nix", testKey("alice").PublicKey(), testKey("alice")); got[0] != msgAuthSuccess {
						s.Errorf("the login is answered with message %d", got[0])
					}
				})
			})
		}
	}
}

// Guards against strangers who say themselves where they come from (CVE-2024-35175 of
// sshpiper), from elsewhere or in a second header.
func TestHeaderFromElsewhereEndsTheConnection(t *testing.T) {
	for name, text := range map[string]string{"v1": header(t, 1, "192.0.2.5:4711"), "v2": header(t, 2, "192.0.2.5:4711")} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, balanced, func(s *site) {
				if _, err := clientOn(s.through("10.1.0.1", text), s.config("nix", ssh.PublicKeys(testKey("alice")))); err == nil {
					s.Error("logged in behind a header from an address that is not listed")
				}
				s.logged("ssh handshake failed", "addr", "10.1.0.1", "reason", "PROXY header from an address that is not listed in ssh.proxy_protocol")
				if n := s.front.refusals.counts()[RefusedHeader]; n != 1 {
					s.Errorf("%d refusals are counted, want 1", n)
				}
				if _, err := clientOn(s.through(balancer, header(s, 2, "192.0.2.6:4711")+text), s.config("nix", ssh.PublicKeys(testKey("alice")))); err == nil {
					s.Error("logged in behind two headers")
				}
				if strings.Contains(s.book.String(), "192.0.2.5") {
					s.Errorf("the address of the header is in the log:\n%s", s.book)
				}
			})
		})
	}
}

// Guards against who comes past the balancer's header, into which its clients can not
// look: without one nobody logs in from there.
func TestBalancerWithoutAHeaderIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		reason string
	}{
		"SSH":         {"SSH-2.0-x\r\n", "signature not present"},
		"nothing":     {"", "no PROXY header within 5s"},
		"half":        {"PROXY TCP4 192.0", "version 1"},
		"no TCP":      {"\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c" + strings.Repeat("\x01", 12), "no TCP addresses"},
		"huge length": {"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff", "length"},
		"zone":        {"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "address"},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, balanced, func(s *site) {
				conn := s.through(balancer, c.text)
				start := time.Now()
				if got, _ := io.ReadAll(conn); len(got) != 0 {
					s.Errorf("was told %q", got)
				}
				if took := time.Since(start); took > headerTimeout {
					s.Errorf("closed after %s", took)
				}
				s.logged("ssh connection refused: no PROXY header", "addr", balancer, "reason", c.reason)
				if s.isOutAfter(balancer, 0) || s.held() != (holdings{slots: 1}) {
					s.Errorf("the balancer is kept out, or %+v is left", s.held())
				}
			})
		})
	}
}

// Guards against a balancer whose look at us is taken for a broken client.
func TestBalancerMayLookWhetherWeLive(t *testing.T) {
	inMemory(t, balanced, func(s *site) {
		local := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
		line := make([]byte, len(serverIdent))
		for range 100 { // of several, each twice a second
			conn := s.through(balancer, local)
			if _, err := io.ReadFull(conn, line); err != nil || string(line) != serverIdent {
				s.Fatalf("got %q, %v; the log:\n%s", line, err, s.book)
			}
			conn.Close()
			time.Sleep(time.Second / 4)
		}
	})
}
