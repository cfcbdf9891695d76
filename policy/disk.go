package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/skeema/knownhosts"
)

// The largest files that are read, in bytes. They are far above real ones and
// keep a wrong name, of a disk image say, from filling memory.
const (
	maxPolicyBytes   = 1 << 20
	maxKeysBytes     = 4 << 20 // known_hosts and authorized_keys
	maxIdentityBytes = 64 << 10
)

// disk is what a policy reads besides its own bytes.
type disk interface {
	// read returns what a regular file has, up to limit bytes.
	read(path string, limit int64) ([]byte, fs.FileMode, error)
	// secret is read for a file that is not to be anybody's: what it returns of the
	// file is true of the bytes that it returns.
	secret(path string, limit int64) ([]byte, secretFile, error)
	// list returns the names in a directory, at most limit of them; nil for what is
	// no directory.
	list(path string, limit int) ([]string, fs.FileMode, error)
	// owner returns whose a file is, 0 if it is not there.
	owner(path string) int
	// hostKeyTypes returns the types of the keys that a known_hosts file has for
	// an address with port.
	hostKeyTypes(path, address string) ([]string, error)
}

type realDisk struct{}

func (realDisk) read(path string, limit int64) ([]byte, fs.FileMode, error) {
	// Looked at before it is opened: opening a pipe would wait for its writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("open %s: not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("read %s: the file is larger than %s", path, sizeText(limit))
	}
	return text, info.Mode().Perm(), err
}

func (realDisk) secret(path string, limit int64) ([]byte, secretFile, error) {
	// Opening a pipe would wait for its writer.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, secretFile{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, secretFile{}, err
	}
	of := secretFile{mode: info.Mode(), owner: ownerOf(info)}
	if !of.mode.IsRegular() {
		return nil, of, nil
	}
	text, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("read %s: the file is larger than %s", path, sizeText(limit))
	}
	return text, of, err
}

func (realDisk) list(path string, limit int) ([]string, fs.FileMode, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return nil, 0, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(limit + 1)
	switch {
	case errors.Is(err, io.EOF): // it is empty
		return []string{}, info.Mode().Perm(), nil
	case len(names) > limit:
		return nil, 0, fmt.Errorf("%s has more than %d entries", path, limit)
	}
	return names, info.Mode().Perm(), err
}

func (realDisk) owner(path string) int {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return ownerOf(info)
}

func ownerOf(info fs.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1 // nobody's
}

// identityOf returns what tells a file from another one that has its name, and when the
// system says that anything about it was changed; all zero where it does not say.
func identityOf(info fs.FileInfo) (device, inode uint64, changed time.Time) {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(stat.Dev), stat.Ino, time.Unix(stat.Ctim.Unix())
	}
	return 0, 0, time.Time{}
}

func (realDisk) hostKeyTypes(path, address string) ([]string, error) {
	db, err := knownhosts.NewDB(path)
	if err != nil {
		return nil, err
	}
	return db.HostKeyAlgorithms(address), nil
}

// fullPath makes a path of a file in a directory a full one.
func fullPath(dir, path string) (string, error) {
	if strings.HasPrefix(path, "~") {
		return "", refuse("write the path in full", "path %s begins with ~, which only a shell understands", quote(path))
	}
	if strings.ContainsFunc(path, unicode.IsControl) {
		return "", refuse("write the path on one line", "path %s has a control character", quote(path))
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return filepath.Clean(path), nil
}

// othersMayWrite is the permission that no file about keys may give.
const othersMayWrite = 0o002
