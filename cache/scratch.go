package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"nixbastion/internal/nix"
)

// scratch is the folder of temporary files of one process. The lock on the file
// beside it, held as long as the process lives, keeps other processes from wiping it.
type scratch struct {
	dir  string   // tmp/<pid>, below the cache's root
	root *os.Root // of dir
	lock *os.File
	next atomic.Uint64
	// before are the processes whose folders are not to be wiped yet.
	before []*predecessor
}

const lockSuffix = ".lock"

// openScratch wipes what dead processes left and makes a folder of our own. Two
// processes of one pid in different namespaces get different folders.
func openScratch(root *os.Root) (*scratch, error) {
	before, err := wipeStale(root)
	if err != nil {
		return nil, err
	}
	for n := range 100 {
		dir := path.Join(tmpDir, strconv.Itoa(os.Getpid()))
		if n > 0 {
			dir += "-" + strconv.Itoa(n)
		}
		if slices.ContainsFunc(before, func(p *predecessor) bool { return p.dir == dir }) {
			continue // it had our number, as it has in a container
		}
		lock, err := tryLock(root, dir+lockSuffix)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s, err := makeScratch(root, dir, lock)
		if err == nil {
			s.before = before
		}
		return s, err
	}
	return nil, fmt.Errorf("no free folder in %s", tmpDir)
}

func makeScratch(root *os.Root, dir string, lock *os.File) (*scratch, error) {
	sub, err := remake(root, dir)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &scratch{dir: dir, root: sub, lock: lock}, nil
}

func remake(root *os.Root, dir string) (*os.Root, error) {
	if err := root.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := root.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return root.OpenRoot(dir)
}

// tryLock locks a file or returns EWOULDBLOCK. A wiper may remove the file
// between its opening and its locking; then the lock is one on nothing.
func tryLock(root *os.Root, name string) (*os.File, error) {
	for {
		f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			f.Close()
			return nil, err
		}
		if sameFile(root, name, f) {
			return f, nil
		}
		f.Close()
	}
}

func sameFile(root *os.Root, name string, f *os.File) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := root.Lstat(name)
	return err == nil && os.SameFile(held, named)
}

// wipeStale removes the folders whose lock nobody holds and in which nothing is on
// offer, and returns the others.
func wipeStale(root *os.Root) ([]*predecessor, error) {
	dir, err := root.Open(tmpDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var before []*predecessor
	for _, name := range names {
		name = strings.TrimSuffix(path.Join(tmpDir, name), lockSuffix)
		if seen[name] {
			continue
		}
		seen[name] = true
		p, err := wipeOne(root, name)
		if err != nil {
			return nil, err
		}
		if p != nil {
			before = append(before, p)
		}
	}
	return before, nil
}

func wipeOne(root *os.Root, dir string) (*predecessor, error) {
	lock, err := tryLock(root, dir+lockSuffix)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		p, err := openPredecessor(root, dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // it has not begun, or has just ended
		}
		return p, err
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if p, err := openPredecessor(root, dir); err == nil {
		if offers, err := p.offers(); err == nil && len(offers) > 0 {
			return p, nil
		}
		p.root.Close()
	}
	return nil, wipe(root, dir)
}

// wipe removes the folder of a process that has ended. Its lock is held. Narinfos
// that were taken away, while it was not decided yet whether their paths go, are
// put back: their rows and NARs are there.
func wipe(root *os.Root, dir string) error {
	if err := putBack(root, dir); err != nil {
		return err
	}
	if err := root.RemoveAll(dir); err != nil {
		return err
	}
	return removeIfThere(root, dir+lockSuffix)
}

// asidePrefix begins the names of narinfos that were taken away.
const asidePrefix = "aside-"

// aside is where a narinfo is until it is decided whether its path goes.
func (s *scratch) aside(k key) string { return path.Join(s.dir, asidePrefix+k.flatName()) }

func (s *scratch) putBack(root *os.Root) error { return putBack(root, s.dir) }

func putBack(root *os.Root, dir string) error {
	err := eachName(root, dir, func(names []string) error {
		for _, name := range names {
			flat, taken := strings.CutPrefix(name, asidePrefix)
			if !taken {
				continue
			}
			k, err := parseFlatName(flat)
			if err != nil {
				continue // not ours
			}
			if _, err := root.Lstat(k.narinfoName()); err == nil {
				continue
			}
			if err := root.Rename(path.Join(dir, name), k.narinfoName()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// create makes a new temporary file and returns its name within the scratch.
func (s *scratch) create() (*os.File, string, error) {
	name := strconv.FormatUint(s.next.Add(1), 10)
	f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return f, name, diskError(err)
}

// diskError tells the user when the disk is full, and leaves other errors alone:
// they are the admin's.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &nix.UserError{Message: "the proxy's disk is full; its admin has to make space or lower cache.size", Err: err}
	}
	return err
}

// write makes a temporary file with this content.
func (s *scratch) write(content []byte) (name string, err error) {
	f, name, err := s.create()
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	return name, errors.Join(err, f.Close())
}

// publish renames a temporary file to a name below the cache's root.
func (s *scratch) publish(root *os.Root, name, to string) error {
	return renameInto(root, path.Join(s.dir, name), to)
}

// leave is close for a process whose folder another one wipes.
func (s *scratch) leave() error { return errors.Join(s.root.Close(), s.lock.Close()) }

func (s *scratch) close(root *os.Root) error {
	err := errors.Join(s.root.Close(), root.RemoveAll(s.dir), removeIfThere(root, s.dir+lockSuffix))
	return errors.Join(err, s.lock.Close())
}
