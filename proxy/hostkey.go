package proxy

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

const (
	hostKeyFile    = "ssh_host_ed25519_key"
	hostKeyComment = "nixbastion host key"
	// maxHostKeyBytes is far above any ed25519 key file.
	maxHostKeyBytes = 16 << 10
)

// LoadOrCreateHostKey returns the ed25519 host key in dir, the state directory. It
// is made on first use and stays for ever: clients know the host by it. A file
// that exists and cannot be used is an error, never a reason for a new key. Of
// several processes that start at once all get the same key. The public half
// stands beside it, ready for known_hosts.
func LoadOrCreateHostKey(dir string) (ssh.Signer, error) {
	path := filepath.Join(dir, hostKeyFile)
	signer, err := loadHostKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createHostKey(dir, path); err != nil {
			return nil, fmt.Errorf("create host key %s: %w", path, err)
		}
		signer, err = loadHostKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("load host key %s: %w", path, err)
	}
	if err := writePublicKey(dir, path+".pub", signer.PublicKey()); err != nil {
		return nil, fmt.Errorf("write %s.pub: %w", path, err)
	}
	return signer, nil
}

func loadHostKey(path string) (ssh.Signer, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := checkPrivate(file); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxHostKeyBytes))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, err
	}
	if kind := signer.PublicKey().Type(); kind != ssh.KeyAlgoED25519 {
		return nil, fmt.Errorf("expected %s, got %s", ssh.KeyAlgoED25519, kind)
	}
	return signer, nil
}

func checkPrivate(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("not a regular file: %s", info.Mode())
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("mode %#o lets others read the key; chmod 600 it, or make a new one if others may have read it", mode)
	}
	return nil
}

// createHostKey writes the whole key elsewhere and links it into place: link
// fails where somebody else was faster, and then his key is as good.
func createHostKey(dir, path string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, hostKeyComment)
	if err != nil {
		return err
	}
	temp, err := writeTemp(dir, pem.EncodeToMemory(block))
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := os.Link(temp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

// writePublicKey keeps the .pub file true to the private one.
func writePublicKey(dir, path string, key ssh.PublicKey) error {
	line := append(ssh.MarshalAuthorizedKey(key), '\n')
	line = append(line[:len(line)-2], " "+hostKeyComment+"\n"...)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(line) {
		return nil
	}
	temp, err := writeTemp(dir, line)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := os.Chmod(temp, 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// writeTemp writes a file that only we can read, and syncs it.
func writeTemp(dir string, content []byte) (string, error) {
	file, err := os.CreateTemp(dir, ".hostkey-*") // 0600
	if err != nil {
		return "", err
	}
	_, err = file.Write(content)
	err = errors.Join(err, file.Sync(), file.Close())
	if err != nil {
		os.Remove(file.Name())
		return "", err
	}
	return file.Name(), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
