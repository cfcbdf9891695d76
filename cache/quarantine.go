package cache

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"
)

const (
	// quarantineAge is how long what was found broken is kept for the admin to look
	// at.
	quarantineAge = 30 * 24 * time.Hour
	// quarantineShare is the part of the cache's size, one in so many, that the
	// quarantine may take beside it.
	quarantineShare = 20
	// quarantineEvery is how often it is looked for what is too old.
	quarantineEvery = time.Hour
)

// quarantine moves a file away, if it is there. What is oldest there makes room.
func (k *keeper) quarantine(file string) error {
	aside := path.Join(quarantineDir, path.Base(file))
	err := k.c.root.Rename(file, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	now := k.c.now()
	if err := k.c.root.Chtimes(aside, now, now); err != nil { // when it came here
		return err
	}
	return k.trimQuarantine()
}

// detained is what one name in quarantine stands for.
type detained struct {
	name  string
	since time.Time
	bytes int64
}

// trimQuarantine removes what is too old, and the oldest until the rest is small
// enough.
func (k *keeper) trimQuarantine() error {
	all, err := k.c.detained()
	if err != nil {
		return err
	}
	var bytes int64
	for _, d := range all {
		bytes += d.bytes
	}
	limit, oldest := k.c.room.size/quarantineShare, k.c.now().Add(-quarantineAge)
	kept := all[:0]
	for _, d := range all {
		if bytes <= limit && d.since.After(oldest) {
			kept = append(kept, d)
			continue
		}
		if err := k.c.root.RemoveAll(path.Join(quarantineDir, d.name)); err != nil {
			return err
		}
		bytes -= d.bytes
		k.c.log.Info("removed from quarantine", "file", d.name, "since", d.since, "bytes", d.bytes)
	}
	k.c.counters.quarantined.Store(int64(len(kept)))
	k.c.counters.quarantinedBytes.Store(bytes)
	return nil
}

// detained lists the quarantine, the oldest first.
func (c *Cache) detained() ([]detained, error) {
	var all []detained
	err := eachName(c.root, quarantineDir, func(names []string) error {
		for _, name := range names {
			info, err := c.root.Lstat(path.Join(quarantineDir, name))
			if err != nil {
				return err
			}
			all = append(all, detained{name, info.ModTime(), c.bytesBelow(path.Join(quarantineDir, name))})
		}
		return nil
	})
	slices.SortFunc(all, func(a, b detained) int { return a.since.Compare(b.since) })
	return all, err
}

// bytesBelow is what a file takes, or all files in a folder.
func (c *Cache) bytesBelow(name string) int64 {
	var bytes int64
	// What cannot be read counts for nothing.
	_ = fs.WalkDir(c.root.FS(), name, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			bytes += (info.Size() + blockSize - 1) / blockSize * blockSize
		}
		return nil
	})
	return bytes
}
