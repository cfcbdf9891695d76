package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// cacheDir is where roots, downloads and the folders of running beds live. It
// is outside of any clone: unpacking once per machine is enough.
func cacheDir() string {
	if dir := os.Getenv("NIXBASTION_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/nixbastion"
}

// errLocked says that another process holds a lock.
var errLocked = errors.New("locked by another process")

// tryLock takes the lock file exclusively, or fails with errLocked at once.
// Closing the file gives the lock back, and so does the end of the process.
func tryLock(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	return f, nil
}

// lock waits for the lock file; waiting is called once if it must wait.
func lock(ctx context.Context, file string, waiting func()) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		f, err := tryLock(file)
		if !errors.Is(err, errLocked) {
			return f, err
		}
		if first {
			waiting()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
