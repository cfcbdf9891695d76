package proxy

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

func createdHostKey(t *testing.T, dir string) ssh.Signer {
	t.Helper()
	key, err := LoadOrCreateHostKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Guards against clients that suddenly see another host, and against a key that
// others can read.
func TestHostKeyIsCreatedOnceAndStays(t *testing.T) {
	dir := t.TempDir()
	first := createdHostKey(t, dir)
	if kind := first.PublicKey().Type(); kind != ssh.KeyAlgoED25519 {
		t.Errorf("host key is of type %s", kind)
	}
	path := filepath.Join(dir, hostKeyFile)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key file is %#o, want 0600", info.Mode().Perm())
	}
	text := readFile(t, path)
	for range 3 {
		if again := createdHostKey(t, dir); !bytes.Equal(again.PublicKey().Marshal(), first.PublicKey().Marshal()) {
			t.Error("another host key after a restart")
		}
	}
	if !bytes.Equal(readFile(t, path), text) {
		t.Error("the key file was written again")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files in the state directory are %v (%v), want the key and its public half", entries, err)
	}
}

// Guards against a .pub file that names another key, which admins would paste.
func TestPublicHalfIsTrueToTheHostKey(t *testing.T) {
	dir := t.TempDir()
	key := createdHostKey(t, dir)
	pub := filepath.Join(dir, hostKeyFile+".pub")
	for _, spoil := range []func() error{
		func() error { return nil },
		func() error { return os.Remove(pub) },
		func() error { return os.WriteFile(pub, []byte("ssh-ed25519 AAAA other\n"), 0o644) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		createdHostKey(t, dir)
		named, comment, _, rest, err := ssh.ParseAuthorizedKey(readFile(t, pub))
		if err != nil || !bytes.Equal(named.Marshal(), key.PublicKey().Marshal()) || comment != hostKeyComment || len(rest) != 0 {
			t.Errorf(".pub file is %q (%v)", readFile(t, pub), err)
		}
	}
}

// Guards against processes that start at once and show different keys.
func TestHostKeyIsTheSameForAllWhoStartAtOnce(t *testing.T) {
	dir := t.TempDir()
	keys := make([]ssh.Signer, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() { keys[i], _ = LoadOrCreateHostKey(dir) })
	}
	wg.Wait()
	for i, key := range keys {
		if key == nil || !bytes.Equal(key.PublicKey().Marshal(), keys[0].PublicKey().Marshal()) {
			t.Errorf("process %d has another key than the first, or none", i)
		}
	}
}

// Guards against a damaged or exposed key that is replaced in silence: clients
// would be told that somebody does something nasty, and the admin nothing.
func TestUnusableHostKeyIsAnErrorAndStays(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(rsaKey, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		spoil func(path string) error
		words string
	}{
		{"readable by the group", func(p string) error { return os.Chmod(p, 0o640) }, "0640 lets others read the key"},
		{"readable by all", func(p string) error { return os.Chmod(p, 0o644) }, "0644"},
		{"writable by others", func(p string) error { return os.Chmod(p, 0o602) }, "0602"},
		{"empty", func(p string) error { return os.Truncate(p, 0) }, "no key found"},
		{"cut", func(p string) error { return os.Truncate(p, 200) }, ""},
		{"no key", func(p string) error { return os.WriteFile(p, []byte("hello\n"), 0o600) }, "no key found"},
		{"far too long", func(p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) }, "no key found"},
		{"RSA", func(p string) error { return os.WriteFile(p, pem.EncodeToMemory(block), 0o600) }, "expected ssh-ed25519, got ssh-rsa"},
		{"directory", func(p string) error { os.Remove(p); return os.Mkdir(p, 0o700) }, "not a regular file"},
		{"dangling link", func(p string) error { os.Remove(p); return os.Symlink("/nonexistent/key", p) }, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			createdHostKey(t, dir)
			path := filepath.Join(dir, hostKeyFile)
			if err := c.spoil(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(path)
			key, err := LoadOrCreateHostKey(dir)
			if err == nil || key != nil {
				t.Fatalf("loaded %v, want an error", key)
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("error %q does not name the file and %q", err, c.words)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was replaced")
			}
		})
	}
}

// Guards against a typing mistake in the state directory that makes a new key.
func TestHostKeyNeedsItsDirectory(t *testing.T) {
	if _, err := LoadOrCreateHostKey(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a host key was made in a directory that does not exist")
	}
}
