package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"nixbastion/internal/nix"
)

// pinDir has an empty file pins/DOMAIN/NAME for each store path NAME that the
// admin has pinned. The files are the truth: they need no index and survive it.
const pinDir = "pins"

// PinPaths keeps paths that are valid in the domain from eviction until
// UnpinPaths, over restarts too. What they refer to stays with them, since a path
// goes only before what it refers to.
func (c *Cache) PinPaths(domain string, paths []nix.StorePath) error {
	if err := checkDomain(domain); err != nil {
		return err
	}
	release := c.hold(paths) // before they are looked up
	defer release()
	for i, rec := range c.find(domain, paths) {
		if rec == nil {
			return nix.Refuse("path '%s' is not in domain %s of the store, so it cannot be pinned", paths[i], domain)
		}
	}
	return c.onKeeper(func(k *keeper) error { return k.pin(domain, paths) })
}

// UnpinPaths lets paths go that PinPaths kept. A path that is not pinned is an
// error, and then none is let go.
func (c *Cache) UnpinPaths(domain string, paths []nix.StorePath) error {
	if err := checkDomain(domain); err != nil {
		return err
	}
	err := c.onKeeper(func(k *keeper) error { return k.unpin(domain, paths) })
	if c.room.excess() > 0 {
		c.keeper.evictSoon()
	}
	return err
}

// PinnedPaths returns what the admin has pinned in a domain.
func (c *Cache) PinnedPaths(domain string) []nix.StorePath {
	c.mu.Lock()
	defer c.mu.Unlock()
	var paths []nix.StorePath
	for p := range c.kept[domain] {
		paths = append(paths, p)
	}
	return nix.SortPaths(paths)
}

func (c *Cache) isPinned(domain string, p nix.StorePath) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, pinned := c.kept[domain][p]
	return pinned
}

// onKeeper runs a task on the keeper's goroutine.
func (c *Cache) onKeeper(task func(*keeper) error) error {
	err := c.whyNot()
	c.keeper.do(func() { err = task(c.keeper) })
	return err
}

func (k *keeper) pin(domain string, paths []nix.StorePath) error {
	dir := path.Join(pinDir, domain)
	if err := k.c.root.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, p := range paths {
		f, err := k.c.root.OpenFile(path.Join(dir, p.Base()), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("pin %s: %w", p, err)
		}
		f.Close()
		k.c.keep(domain, p)
	}
	return errors.Join(syncFile(k.c.root, dir), syncFile(k.c.root, pinDir))
}

func (k *keeper) unpin(domain string, paths []nix.StorePath) error {
	for _, p := range paths {
		if !k.c.isPinned(domain, p) {
			return nix.Refuse("path '%s' is not pinned in domain %s", p, domain)
		}
	}
	dir := path.Join(pinDir, domain)
	for _, p := range paths {
		if err := removeIfThere(k.c.root, path.Join(dir, p.Base())); err != nil {
			return fmt.Errorf("unpin %s: %w", p, err)
		}
		k.c.letGo(domain, p)
	}
	return syncFile(k.c.root, dir)
}

// keep holds a pinned path in memory, once.
func (c *Cache) keep(domain string, p nix.StorePath) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, already := c.kept[domain][p]; already {
		return
	}
	if c.kept[domain] == nil {
		c.kept[domain] = map[nix.StorePath]struct{}{}
	}
	c.kept[domain][p] = struct{}{}
	c.pins[p.HashPart()]++
}

func (c *Cache) letGo(domain string, p nix.StorePath) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, pinned := c.kept[domain][p]; pinned {
		delete(c.kept[domain], p)
		c.unhold(p.HashPart())
	}
}

// loadPins reads what the admin has pinned, before anything can be evicted.
func (c *Cache) loadPins() error {
	domains, err := listFolders(c.root, pinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read pins: %w", err)
	}
	for _, domain := range domains {
		err := eachName(c.root, path.Join(pinDir, domain), func(names []string) error {
			for _, name := range names {
				p, err := nix.ParseStorePathBase(name)
				if err != nil || checkDomain(domain) != nil {
					c.log.Warn("a pin is not the name of a store path", "domain", domain, "name", name)
					continue
				}
				c.keep(domain, p)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read pins of %s: %w", domain, err)
		}
	}
	return nil
}
