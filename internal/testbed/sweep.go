package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
)

// bedNumber tells beds of one process apart.
var bedNumber atomic.Int64

// makeFolder makes the bed's folder, which carries the process id in its name,
// after removing those whose process is gone. A living bed holds the lock in its
// folder. All of this happens under one lock, as a folder that is just being
// made must not be taken for a dead one.
func (b *Bed) makeFolder(ctx context.Context) error {
	beds := filepath.Join(cacheDir(), "beds")
	if err := os.MkdirAll(beds, 0o755); err != nil {
		return err
	}
	guard, err := lock(ctx, filepath.Join(cacheDir(), "locks", "beds"), func() {})
	if err != nil {
		return err
	}
	defer guard.Close()
	if err := sweep(beds); err != nil {
		return err
	}
	dir := filepath.Join(beds, fmt.Sprintf("bed-%d-%d", os.Getpid(), bedNumber.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	b.dir = dir
	b.lock, err = tryLock(filepath.Join(dir, "lock"))
	return err
}

// sweep removes the beds of dead processes. Their hosts died with them: the
// kernel kills a host's init when the thread that started it ends. What is left
// is the folder, and a control group without processes.
func sweep(beds string) error {
	entries, err := os.ReadDir(beds)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(beds, e.Name())
		held, err := tryLock(filepath.Join(dir, "lock"))
		if errors.Is(err, errLocked) {
			continue
		}
		if err != nil {
			return err
		}
		err = errors.Join(cgroupOf(e.Name()).remove(), os.RemoveAll(dir), held.Close())
		if err != nil {
			return fmt.Errorf("remove what a crashed process left: %w", err)
		}
	}
	return nil
}
