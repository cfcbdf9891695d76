package policy

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// dir is a directory with the files that policies in tests name.
type dir string

// newDir has builder-key, a good identity, and others that are none.
func newDir(t testing.TB) dir {
	t.Helper()
	d := dir(t.TempDir())
	private := testPrivateKey("builder")
	d.write("builder-key", privatePEM(private), 0o600)
	d.write("builder-key.pub", authorizedLine("builder"), 0o600)
	d.write("open-key", privatePEM(private), 0o640)
	d.write("locked-key", lockedKey(), 0o600)
	for _, name := range []string{"ci-1", "ci-2", "default-1"} {
		d.write(name+".secret", signingKeyText(name)+"\n", 0o600)
	}
	d.write("large-file", strings.Repeat("x", maxIdentityBytes+1), 0o600)
	return d
}

func (d dir) path(name string) string { return filepath.Join(string(d), name) }

func (d dir) write(name, text string, mode os.FileMode) string {
	path := d.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		panic(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		panic(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		panic(err)
	}
	return path
}

// load loads a policy that is expected to be good.
func (d dir) load(t testing.TB, text string) *Policy {
	t.Helper()
	pol, err := Load(d.write("policy.yaml", text, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return pol
}

// testPrivateKey makes the same key of the same name.
func testPrivateKey(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func testKey(name string) ssh.PublicKey {
	key, err := ssh.NewPublicKey(testPrivateKey(name).Public())
	if err != nil {
		panic(err)
	}
	return key
}

func authorizedLine(name string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(testKey(name))))
}

func privatePEM(key ed25519.PrivateKey) string {
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(block))
}

// signingKeyText is what the file of a secret key of Nix has.
func signingKeyText(name string) string {
	return name + ":" + base64.StdEncoding.EncodeToString(testPrivateKey(name))
}

// lockedKey is made once: a passphrase is meant to be slow.
var lockedKey = sync.OnceValue(func() string {
	block, err := ssh.MarshalPrivateKeyWithPassphrase(testPrivateKey("builder"), "", []byte("secret"))
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(block))
})
