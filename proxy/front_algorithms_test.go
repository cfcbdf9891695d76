package proxy

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

var (
	wantGCM    = []string{"aes128-gcm@openssh.com", "aes256-gcm@openssh.com"}
	wantOthers = append(slices.Clone(wantGCM), "chacha20-poly1305@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
)

// offerTo is what the front offers to a client with an identification line.
func offerTo(s *site, ident string) kexInit {
	s.Helper()
	c := newRawClient(s, s.socket(), ident)
	c.conn.Close()
	return c.offer
}

// Guards against OpenSSH choosing chacha20, at half the rate, and against a client
// that has no common cipher with us.
func TestCiphersFollowTheClientsIdentification(t *testing.T) {
	fast := wantGCM
	if !hasFastAES() {
		fast = wantOthers
	}
	for ident, want := range map[string][]string{
		"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u6": fast,
		"SSH-2.0-OpenSSH_10.0p2 Debian-7":        fast,
		"SSH-2.0-OpenSSH_6.2":                    fast,
		"SSH-1.99-OpenSSH_7.4":                   fast,
		"SSH-2.0-OpenSSH_for_Windows_8.1":        fast,
		"SSH-2.0-OpenSSH_6.1p1":                  wantOthers,
		"SSH-2.0-OpenSSH_5.9p1 Debian-5ubuntu1":  wantOthers,
		"SSH-2.0-OpenSSH":                        wantOthers,
		"SSH-2.0-OpenSSH_":                       wantOthers,
		"SSH-2.0-OpenSSH_x.9":                    wantOthers,
		"SSH-2.0-OpenSSH_99999999999999999999.1": wantOthers,
		"SSH-2.0-xOpenSSH_9.2":                   wantOthers,
		"SSH-2.0-Go":                             wantOthers,
		"SSH-2.0-dropbear_2022.83":               wantOthers,
		"SSH-2.0-PuTTY_Release_0.78":             wantOthers,
		"SSH-2.0-paramiko_2.12.0":                wantOthers,
		"SSH-2.0-libssh_0.10.6":                  wantOthers,
		"SSH-2.0-AsyncSSH_2.10.1":                wantOthers,
	} {
		t.Run(ident, func(t *testing.T) {
			inMemory(t, nil, func(s *site) {
				offer := offerTo(s, ident)
				if !slices.Equal(offer.CiphersClientServer, want) || !slices.Equal(offer.CiphersServerClient, want) {
					s.Errorf("offered %q and %q, want %q", offer.CiphersClientServer, offer.CiphersServerClient, want)
				}
			})
		})
	}
}

// Guards against an override that is ignored for some.
func TestCiphersOfThePolicyHoldForEveryClient(t *testing.T) {
	want := []string{"chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com"}
	inMemory(t, func(o *FrontOptions) { o.Ciphers = want }, func(s *site) {
		for _, ident := range []string{"SSH-2.0-OpenSSH_9.2p1", "SSH-2.0-Go"} {
			if offer := offerTo(s, ident); !slices.Equal(offer.CiphersClientServer, want) || !slices.Equal(offer.CiphersServerClient, want) {
				s.Errorf("%s is offered %q, want %q", ident, offer.CiphersClientServer, want)
			}
		}
	})
}

// Guards against weak algorithms that a library has by default, and against a
// server that is open to prefix truncation.
func TestNothingWeakIsOffered(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		offer := offerTo(s, rawIdent)
		kex := []string{"mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org", "kex-strict-s-v00@openssh.com"}
		if !slices.Equal(offer.KexAlgos, kex) {
			s.Errorf("key exchanges are %q, want %q", offer.KexAlgos, kex)
		}
		if want := []string{"ssh-ed25519"}; !slices.Equal(offer.HostKeyAlgos, want) {
			s.Errorf("host keys are %q, want %q", offer.HostKeyAlgos, want)
		}
		for _, list := range [][]string{offer.MACsClientServer, offer.MACsServerClient} {
			for _, name := range list {
				if !strings.HasSuffix(name, "-etm@openssh.com") {
					s.Errorf("MAC %q is not encrypt-then-MAC", name)
				}
			}
		}
		everything := fmt.Sprint(offer)
		for _, weak := range []string{"sha1", "cbc", "arcfour", "3des", "md5", "ssh-rsa", "ssh-dss", "group1-", "nistp"} {
			if strings.Contains(everything, weak) {
				s.Errorf("%s is offered: %s", weak, everything)
			}
		}
	})
}

// Guards against an offer that no client can take up.
func TestEveryOfferedAlgorithmWorks(t *testing.T) {
	for _, kex := range []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519} {
		for _, name := range wantOthers {
			t.Run(kex+"/"+name, func(t *testing.T) {
				inMemory(t, nil, func(s *site) {
					config := s.config("nix", ssh.PublicKeys(testKey("alice")))
					config.KeyExchanges, config.Ciphers = []string{kex}, []string{name}
					client, err := s.dialConfig(config)
					if err != nil {
						s.Fatal(err)
					}
					defer client.Close()
					s.works(client)
					if got := client.Conn.(ssh.AlgorithmsConnMetadata).Algorithms(); got.KeyExchange != kex || got.Read.Cipher != name || got.Write.Cipher != name {
						s.Errorf("negotiated %+v", got)
					}
				})
			})
		}
	}
}

// Guards against a client that can do only what is broken: it is refused, with a
// line in the log.
func TestClientWithSHA1AloneIsRefused(t *testing.T) {
	inMemory(t, nil, func(s *site) {
		config := s.config("nix", ssh.PublicKeys(testKey("alice")))
		config.KeyExchanges = []string{ssh.InsecureKeyExchangeDH14SHA1}
		if _, err := s.dialConfig(config); err == nil {
			s.Fatal("connected")
		}
		s.logged("ssh handshake failed", "addr", "10.1.0.1", "reason", "no common algorithm")
	})
}

// Guards against a library below the version that has its known holes closed.
func TestSSHLibraryIsNotBelowItsFloor(t *testing.T) {
	text, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s*golang\.org/x/crypto v0\.(\d+)\.\d+$`).FindSubmatch(text)
	if m == nil {
		t.Fatal("go.mod does not name golang.org/x/crypto v0")
	}
	if minor, _ := strconv.Atoi(string(m[1])); minor < 58 {
		t.Errorf("golang.org/x/crypto v0.%d, want v0.58 or newer", minor)
	}
	if regexp.MustCompile(`(?m)^\s*(replace\s+)?golang\.org/x/crypto\b.*=>`).Match(text) {
		t.Error("golang.org/x/crypto is replaced")
	}
}
