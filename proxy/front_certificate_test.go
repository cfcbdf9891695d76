package proxy

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// certified makes a signer of a good user certificate for alice, after change had
// its way with it.
func certified(t testing.TB, key, authority ssh.Signer, change func(*ssh.Certificate)) ssh.Signer {
	t.Helper()
	cert := &ssh.Certificate{
		Key: key.PublicKey(), Serial: 7, CertType: ssh.UserCert, KeyId: "alice@laptop", ValidPrincipals: []string{"alice"}, ValidBefore: ssh.CertTimeInfinity,
	}
	if change != nil {
		change(cert)
	}
	if err := cert.SignCert(rand.Reader, authority); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func publicLine(key ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
}

// policyOf is a proxy that has a policy and nothing else: one principal, alice,
// with lines of authorized_keys, and what else is to stand in the file.
func policyOf(t testing.TB, rest string, lines ...string) (p *Proxy, dir string) {
	t.Helper()
	dir = t.TempDir()
	writeText(t, filepath.Join(dir, "alice.keys"), strings.Join(lines, "\n")+"\n")
	file := writeText(t, filepath.Join(dir, "policy.yaml"), "state_dir: state\nprincipals: [{name: alice, role: full, authorized_keys: alice.keys}]\n"+rest)
	live, err := policy.NewLive(file)
	if err != nil {
		t.Fatal(err)
	}
	return &Proxy{policy: live, log: slog.New(slog.DiscardHandler)}, dir
}

func writeText(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// with makes a front ask the proxy about keys.
func (p *Proxy) with(o *FrontOptions) {
	o.Authorize, o.Offered, o.HostCertificate, o.Exec = p.authorize, p.offered, p.hostCertificate, tellAccess
}

// tellAccess tells a client what its key opens.
func tellAccess(_ context.Context, x *Exec) int {
	access := x.Identity.Data.(*policy.Access)
	fmt.Fprintf(x.Stdout, "%s %s [%s] [%s] jump %v", access.Principal.Name, x.Identity.Fingerprint, access.Certificate, access.Command, !access.NoJump)
	return 0
}

const authorityLine = `cert-authority,principals="alice" `

// Guards against a certificate that logs in as somebody else, or of which the log
// has nothing by which it can be revoked.
func TestCertificateLogsInAndIsNamedInTheLog(t *testing.T) {
	p, _ := policyOf(t, "", authorityLine+publicLine(testKey("ca")))
	inMemory(t, p.with, func(s *site) {
		key := testKey("certified")
		client := s.login("root", certified(s, key, testKey("ca"), nil))
		certificate := fmt.Sprintf(`id "alice@laptop" serial 7 authority %s`, fingerprint(testKey("ca")))
		want := fmt.Sprintf("alice %s [%s] [] jump false", fingerprint(key), certificate)
		if got, _, _ := s.run(client, "access"); got != want {
			s.Errorf("got %q, want %q", got, want)
		}
		s.logged("ssh login", "principal", "alice", "key", fingerprint(key), "certificate", certificate, "user", "root")
	})
}

// Guards against a certificate that is public, as all are, and taken for a proof.
func TestCertificateWithoutItsKeyIsRefused(t *testing.T) {
	p, _ := policyOf(t, "", authorityLine+publicLine(testKey("ca")))
	inMemory(t, p.with, func(s *site) {
		cert := certified(s, testKey("certified"), testKey("ca"), nil).PublicKey()
		c := newRaw(s)
		if reply := c.offerKey(s, "alice", cert); reply[0] != msgAuthPKOK {
			s.Fatalf("offer answered with message %d", reply[0])
		}
		c.must(s, c.signedRequest("alice", cert, testKey("thief")))
		if packet, err := c.read(); err == nil {
			s.Fatalf("a foreign signature was answered with message %d", packet[0])
		}
		s.logged("ssh login refused", "keys", fingerprint(testKey("certified")), "reason", "signature")
	})
}

// Guards against a certificate that nobody has signed but its owner, who knows the
// authority's public key.
func TestForgedCertificateIsRefused(t *testing.T) {
	p, _ := policyOf(t, "", authorityLine+publicLine(testKey("ca")))
	inMemory(t, p.with, func(s *site) {
		key := testKey("certified")
		forged := certified(s, key, testKey("thief"), nil).PublicKey().(*ssh.Certificate)
		forged.SignatureKey = testKey("ca").PublicKey()
		c := newRaw(s)
		methods(s, c.signIn(s, "alice", forged, key))
		c.conn.Close()
		s.logged("ssh login refused", "keys", fingerprint(key), "reason", "has not signed it")
	})
}

// Guards against signatures of authorities that anybody can have verified, 128 at
// a connection, without an own key.
func TestOfferedCertificatesCostNoSignature(t *testing.T) {
	p, _ := policyOf(t, "", authorityLine+publicLine(testKey("ca")))
	var asked atomic.Int32
	inMemory(t, func(o *FrontOptions) {
		p.with(o)
		o.Authorize = func(key ssh.PublicKey, remote netip.Addr) (Grant, error) {
			asked.Add(1)
			return p.authorize(key, remote)
		}
	}, func(s *site) {
		signer := certified(s, testKey("certified"), testKey("ca"), nil)
		c := newRaw(s)
		for i := range 50 {
			c.offerKey(s, fmt.Sprint("user ", i), signer.PublicKey())
		}
		if n := asked.Load(); n != 0 {
			s.Errorf("%d signatures verified for offers", n)
		}
		if reply := c.signIn(s, "alice", signer.PublicKey(), signer); reply[0] != msgAuthSuccess || asked.Load() != 1 {
			s.Errorf("login answered with message %d after %d verifications", reply[0], asked.Load())
		}
	})
}

// Guards against a revoked key or certificate that goes on to work through a
// connection that is open already.
func TestRevocationReachesLiveConnections(t *testing.T) {
	key, other := testKey("certified"), testKey("plain")
	for name, revoked := range map[string]string{
		"serial": "serial: 7", "key id": "id: alice@laptop", "key": publicLine(key), "authority": fingerprint(testKey("ca")),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := writeText(t, filepath.Join(dir, "revoked"), "")
			p, _ := policyOf(t, "revoked_keys: "+file+"\n", authorityLine+publicLine(testKey("ca")), publicLine(other))
			inMemory(t, p.with, func(s *site) {
				signer := certified(s, key, testKey("ca"), nil)
				client, bystander := s.login("nix", signer), s.login("nix", other)
				s.run(client, "access")
				writeText(s, file, revoked+"\n")
				if err := p.policy.Reload(); err != nil {
					s.Fatal(err)
				}
				if _, err := client.NewSession(); err == nil || !strings.Contains(err.Error(), "not accepted any more") {
					s.Errorf("next session on a live connection: %v", err)
				}
				if _, err := s.dial("nix", signer); err == nil {
					s.Error("next login works")
				}
				s.logged("ssh session refused", "key", fingerprint(key), "certificate", "serial 7", "reason", "revoked")
				s.logged("ssh login refused", "keys", fingerprint(key), "reason", "revoked")
				s.run(bystander, "access")
			})
		})
	}
}

// Guards against a certificate that counts for as long as its connection lives.
func TestCertificateEndsForLiveConnectionsToo(t *testing.T) {
	p, _ := policyOf(t, "", authorityLine+publicLine(testKey("ca")))
	inMemory(t, p.with, func(s *site) {
		client := s.login("nix", certified(s, testKey("certified"), testKey("ca"), func(c *ssh.Certificate) {
			c.ValidBefore = uint64(time.Now().Add(5 * time.Minute).Unix())
		}))
		s.run(client, "access")
		time.Sleep(5 * time.Minute)
		if _, err := client.NewSession(); err == nil {
			s.Error("a session after the end of the certificate")
		}
	})
}

// securityKey is a FIDO key: an ed25519 key that signs what its hardware says
// about the person before it.
type securityKey struct {
	key   ed25519.PrivateKey
	flags byte // 1: touched, 4: PIN or the like
}

func newSecurityKey(name string, flags byte) *securityKey {
	seed := sha256.Sum256([]byte(name))
	return &securityKey{ed25519.NewKeyFromSeed(seed[:]), flags}
}

const securityApplication = "ssh:"

func (k *securityKey) PublicKey() ssh.PublicKey {
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, k.key.Public().(ed25519.PublicKey), securityApplication}))
	if err != nil {
		panic(err)
	}
	return key
}

func (k *securityKey) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	state := binary.BigEndian.AppendUint32([]byte{k.flags}, 42) // and the counter
	application, message := sha256.Sum256([]byte(securityApplication)), sha256.Sum256(data)
	signed := append(append(application[:], state...), message[:]...)
	return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(k.key, signed), Rest: state}, nil
}

// Guards against security keys that whoever has the machine can use, without the
// person at it. That a certificate or a PIN says otherwise changes nothing.
func TestSecurityKeysMustBeTouched(t *testing.T) {
	p, _ := policyOf(t, "", "restrict "+publicLine(newSecurityKey("plain", 0)), authorityLine+publicLine(testKey("ca")))
	untouched := func(c *ssh.Certificate) { c.Extensions = map[string]string{"no-touch-required": ""} }
	for name, c := range map[string]struct {
		key    string
		flags  byte
		change func(*ssh.Certificate)
		signed bool
		good   bool
	}{
		"touched":                       {key: "plain", flags: 1, good: true},
		"touched with PIN":              {key: "plain", flags: 5, good: true},
		"untouched":                     {key: "plain", flags: 0},
		"untouched with PIN":            {key: "plain", flags: 4},
		"certificate, touched":          {key: "certified", flags: 1, signed: true, good: true},
		"certificate, untouched":        {key: "certified", flags: 0, signed: true},
		"certificate for no touch":      {key: "certified", flags: 0, signed: true, change: untouched},
		"the same, but touched":         {key: "certified", flags: 1, signed: true, change: untouched},
		"somebody else's, touched well": {key: "stranger", flags: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inMemory(t, p.with, func(s *site) {
				var signer ssh.Signer = newSecurityKey(c.key, c.flags)
				if c.signed {
					signer = certified(s, signer, testKey("ca"), c.change)
				}
				client, err := s.dial("nix", signer)
				if (err == nil) != c.good {
					s.Fatalf("got %v", err)
				}
				if err == nil {
					defer client.Close()
					if got, _, _ := s.run(client, "access"); !strings.HasPrefix(got, "alice "+policy.Fingerprint(signer.PublicKey())) {
						s.Errorf("got %q", got)
					}
				}
			})
		})
	}
}
