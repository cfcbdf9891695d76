package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"nixbastion/internal/nix"
)

// adoptGroup is how many found paths enter the index in one transaction.
const adoptGroup = 256

// rebuild looks for what is published and not in the index, and for NARs that
// nothing names. It runs in the background after a crash and when the index is
// new; until it ends, what the index does not have is looked for on disk.
func (c *Cache) rebuild(ctx context.Context) {
	err := c.scan(ctx)
	if ctx.Err() != nil {
		return // the next start goes on
	}
	if err != nil {
		c.log.Error("cannot rebuild the index", "err", err)
		return
	}
	c.scanning.Store(false)
}

func (c *Cache) scan(ctx context.Context) error {
	domains, err := listFolders(c.root, domainDir)
	if err != nil {
		return err
	}
	for _, domain := range append([]string{publicDomain}, domains...) {
		if domain != publicDomain && checkDomain(domain) != nil {
			continue
		}
		if err := c.scanDomain(ctx, domain); err != nil {
			return fmt.Errorf("scan %s: %w", folder(domain), err)
		}
	}
	if err := c.dropOrphans(ctx); err != nil {
		return err
	}
	return c.sweepNARs(ctx)
}

// dropOrphans removes rows without a narinfo: a crash came while they were
// evicted.
func (c *Cache) dropOrphans(ctx context.Context) error {
	var last key
	for ctx.Err() == nil {
		keys, err := c.index.keysBehind(last, adoptGroup)
		if err != nil || len(keys) == 0 {
			return err
		}
		last = keys[len(keys)-1]
		c.keeper.do(func() { err = c.keeper.dropOrphans(keys) })
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (k *keeper) dropOrphans(keys []key) error {
	orphans := slices.DeleteFunc(keys, func(name key) bool {
		_, err := k.c.root.Lstat(name.narinfoName())
		return !errors.Is(err, fs.ErrNotExist)
	})
	if len(orphans) == 0 {
		return nil
	}
	return k.remove(orphans, nil)
}

// listFolders names the folders in a directory.
func listFolders(root *os.Root, name string) ([]string, error) {
	var folders []string
	err := eachName(root, name, func(some []string) error {
		for _, sub := range some {
			if info, err := root.Lstat(path.Join(name, sub)); err == nil && info.IsDir() {
				folders = append(folders, sub)
			}
		}
		return nil
	})
	return folders, err
}

// eachName calls do with the names in a directory, some at a time.
func eachName(root *os.Root, name string, do func([]string) error) error {
	dir, err := root.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(adoptGroup)
		if err == io.EOF {
			return nil
		}
		if err != nil { // to go on would sweep NARs whose narinfo was not read
			return err
		}
		if err := do(names); err != nil {
			return err
		}
	}
}

func (c *Cache) scanDomain(ctx context.Context, domain string) error {
	return eachName(c.root, folder(domain), func(names []string) error {
		var keys []key
		for _, name := range names {
			if hashPart, ok := strings.CutSuffix(name, narinfoSuffix); ok && len(hashPart) == hashPartLen {
				keys = append(keys, key{domain, hashPart})
			}
		}
		return c.adopt(ctx, keys)
	})
}

// adopt enters published paths into the index, unless they are there.
func (c *Cache) adopt(ctx context.Context, keys []key) error {
	known, err := c.index.find(keys)
	if err != nil {
		return err
	}
	var missing []key
	for i, k := range keys {
		if known[i] == nil {
			missing = append(missing, k)
		}
	}
	if len(missing) == 0 {
		return ctx.Err()
	}
	if !c.keeper.do(func() { err = c.keeper.adopt(missing) }) {
		return ErrClosed
	}
	return errors.Join(err, ctx.Err())
}

func (k *keeper) adopt(keys []key) error {
	now := k.c.now().UnixNano()
	var adopted []key
	done, err := k.c.index.update(func(t *indexTx) error {
		for _, key := range keys {
			rec := k.adoptable(t, key)
			if rec == nil {
				continue
			}
			if err := t.put(key, &row{record: *rec, lastUse: now}); err != nil {
				return err
			}
			adopted = append(adopted, key)
		}
		return nil
	})
	if err == nil {
		k.c.applied(done)
		k.c.forget(adopted)
	}
	return err
}

// adoptable reads a narinfo that is to enter the index. One that is broken, or
// whose NAR is, goes to quarantine.
func (k *keeper) adoptable(t *indexTx, name key) *record {
	if t.rows.Get(name.bytes()) != nil {
		return nil // published meanwhile
	}
	rec, err := readNarinfo(k.c.root, name)
	switch {
	case err == nil:
		return rec
	case errors.Is(err, fs.ErrNotExist): // evicted meanwhile
	default:
		k.c.log.Warn("put a narinfo aside", "file", name.narinfoName(), "err", err)
		if err := k.quarantine(name.narinfoName()); err != nil {
			k.c.log.Error("cannot put a narinfo aside", "err", err)
		}
	}
	return nil
}

// stray looks for a published path that the index does not have yet.
func (c *Cache) stray(k key) *record {
	rec, err := readNarinfo(c.root, k)
	if err != nil {
		return nil
	}
	return rec
}

// sweepNARs removes NARs that nothing names: a crash came before their narinfo.
func (c *Cache) sweepNARs(ctx context.Context) error {
	shards, err := listFolders(c.root, narDir)
	if err != nil {
		return err
	}
	for _, shard := range shards {
		err := eachName(c.root, path.Join(narDir, shard), func(names []string) error {
			c.keeper.do(func() { c.keeper.removeNARs(narHashes(names)) })
			return ctx.Err()
		})
		if err != nil {
			return fmt.Errorf("sweep %s: %w", shard, err)
		}
	}
	return nil
}

// narHashes reads the names of NAR files and leaves out what is none.
func narHashes(names []string) []nix.Hash {
	var hashes []nix.Hash
	for _, name := range names {
		text, ok := strings.CutSuffix(name, narSuffix)
		if !ok {
			continue
		}
		if h, err := nix.ParseHash(text, nix.SHA256); err == nil {
			hashes = append(hashes, h)
		}
	}
	return hashes
}
