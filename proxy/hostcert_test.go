package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// withHostCertificate writes a policy with a certificate that ends at a time.
func withHostCertificate(t *testing.T, dir string, key ssh.PublicKey, until time.Time) (*policy.Live, *ssh.Certificate) {
	t.Helper()
	cert := &ssh.Certificate{
		Key: key, CertType: ssh.HostCert, ValidPrincipals: []string{"proxy.example.org"},
		ValidAfter: uint64(until.Add(-48 * time.Hour).Unix()), ValidBefore: uint64(until.Unix()),
	}
	if err := cert.SignCert(rand.Reader, testKey("host authority")); err != nil {
		t.Fatal(err)
	}
	writeText(t, filepath.Join(dir, "cert.pub"), string(ssh.MarshalAuthorizedKey(cert)))
	live, err := policy.NewLive(writeText(t, filepath.Join(dir, "policy.yaml"), "state_dir: state\nssh: {host_certificate: cert.pub}\n"))
	if err != nil {
		t.Fatal(err)
	}
	return live, cert
}

// started starts a proxy with a host certificate in a state directory and returns
// what it logged.
func started(t *testing.T, dir string, key ssh.PublicKey, until time.Time) (book *logBook, err error) {
	t.Helper()
	live, cert := withHostCertificate(t, dir, key, until)
	book = &logBook{}
	p, err := New(context.Background(), Options{Policy: live, Version: "test", Log: slog.New(slog.NewJSONHandler(book, nil))})
	if err != nil {
		return book, err
	}
	if got := p.front.hostSigners(); len(got) != 2 || !bytes.Equal(got[1].PublicKey().Marshal(), cert.Marshal()) {
		t.Errorf("host keys shown are %v", got)
	}
	return book, p.Shutdown(context.Background())
}

// Guards against a host that clients turn away from without a word to the admin.
func TestHostCertificateIsCheckedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	key := createdHostKey(t, state).PublicKey()
	now := time.Now()
	for name, c := range map[string]struct {
		until       time.Time
		want, warns string
	}{
		"not yet": {until: now.Add(400 * 24 * time.Hour), want: "counts from"},
		"now":     {until: now.Add(47 * time.Hour), warns: "host certificate expires soon"},
		"expired": {until: now.Add(-time.Hour), want: "expired on"},
	} {
		book, err := started(t, dir, key, c.until)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "cert.pub")) {
			t.Errorf("%s: got %v", name, err)
		}
		if c.warns != "" && len(book.records(t, c.warns)) != 1 {
			t.Errorf("%s: the log has\n%s", name, book)
		}
	}
}

// Guards against a certificate for a key that the proxy has not: one of before it
// lost its state directory.
func TestHostCertificateOfAnotherKeyIsRefusedAtTheStart(t *testing.T) {
	_, err := started(t, t.TempDir(), testKey("old host").PublicKey(), time.Now().Add(time.Hour))
	if err == nil || !strings.Contains(err.Error(), "is for the key "+fingerprint(testKey("old host"))) {
		t.Errorf("got %v", err)
	}
}

// Guards against a certificate that is shown when its time is over: who trusts its
// authority would turn away, though the key is the right one.
func TestHostCertificateIsShownInItsTimeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live, _ := withHostCertificate(t, t.TempDir(), testKey("host").PublicKey(), time.Now().Add(time.Hour))
		p := &Proxy{policy: live}
		front, err := NewFront(FrontOptions{
			HostKeys: []ssh.Signer{testKey("host")}, HostCertificate: p.hostCertificate, Authorize: p.authorize, Exec: tellAccess,
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{2, 1} {
			if got := front.hostSigners(); len(got) != want || !bytes.Equal(got[0].PublicKey().Marshal(), testKey("host").PublicKey().Marshal()) {
				t.Errorf("%d host keys are shown, want %d", len(got), want)
			}
			time.Sleep(time.Hour)
		}
	})
}
