package upstream

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxKeyFile is the largest private key file that is read, in bytes; RSA keys of
// 16,384 bits have 13 KiB.
const maxKeyFile = 64 << 10

// identity is the private key with which we log in. The file is read when it is
// first needed and again when it has changed, so a key can be exchanged while
// builds run.
type identity struct {
	file string

	mu     sync.Mutex // guards what follows; held while the file is read
	seen   fileState
	signer ssh.Signer
}

// fileState tells whether a file is still the one that was read.
type fileState struct {
	size     int64
	modified time.Time
}

func stateOf(info os.FileInfo) fileState { return fileState{info.Size(), info.ModTime()} }

func (id *identity) load() (ssh.Signer, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	info, err := os.Stat(id.file)
	if err != nil {
		return nil, fmt.Errorf("read identity file: %w", err)
	}
	if id.signer != nil && stateOf(info) == id.seen {
		return id.signer, nil
	}
	signer, err := readKey(id.file)
	if err != nil {
		return nil, fmt.Errorf("read identity file %s: %w", id.file, err)
	}
	id.seen, id.signer = stateOf(info), signer
	return signer, nil
}

func readKey(file string) (ssh.Signer, error) {
	text, err := readBounded(file, maxKeyFile)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, errors.New("it needs a passphrase, and nobody is there to type it")
	}
	return signer, err
}

func readBounded(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("larger than %d bytes", limit)
	}
	return text, err
}
