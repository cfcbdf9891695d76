package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"nixbastion/internal/nix"
)

// Lost is a record that was dropped since its NAR was found broken.
type Lost struct {
	Domain string // "" is the public one
	Path   nix.StorePath
}

// checkNAR reads a published NAR and compares it with its hash. One that is wrong,
// or gone under a live row, is dropped with all records that name it, which are
// returned. pace is asked before bytes are read.
func (c *Cache) checkNAR(ctx context.Context, n knownNAR, pace func(ctx context.Context, bytes int) error) ([]Lost, error) {
	f, err := c.root.Open(narName(n.hash))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return c.condemn(n.hash, fileID{}, err)
		}
		return nil, fmt.Errorf("open NAR %s: %w", n.hash, err)
	}
	defer f.Close()
	info, err := checkLength(f, n.size)
	if err == nil {
		readOnce(f)
		err = hashFile(ctx, f, n.hash, pace)
	}
	switch {
	case err == nil:
		c.checked.add(n.hash, idOf(info))
		return nil, nil
	case isRot(err):
		return c.condemn(n.hash, idOfFile(f), err)
	}
	return nil, fmt.Errorf("read NAR %s: %w", n.hash, err)
}

func idOfFile(f *os.File) fileID {
	info, err := f.Stat()
	if err != nil {
		return fileID{}
	}
	return idOf(info)
}

func hashFile(ctx context.Context, f *os.File, want nix.Hash, pace func(context.Context, int) error) error {
	sha := nix.SHA256.New()
	err := copyChunks(ctx, f, func(p []byte) error {
		sha.Write(p)
		return pace(ctx, len(p))
	})
	if err == nil && nix.SumHash(nix.SHA256, sha) != want {
		err = errBytes
	}
	return err
}

// condemn takes away a NAR that was found wrong in the file of that id, with all
// records that name it. It does nothing if another file has the name by now, or
// nobody names it any more.
func (c *Cache) condemn(narHash nix.Hash, id fileID, reason error) ([]Lost, error) {
	var taken bool
	var err error
	if !c.keeper.do(func() { taken, err = c.keeper.takeAway(narHash, id, reason) }) {
		return nil, ErrClosed
	}
	if err != nil || !taken {
		return nil, err
	}
	var lost []Lost
	names := func(_ key, h rowHead) bool { return h.narHash == narHash }
	err = c.index.everyEntry(names, func(found []entry) error {
		var dropped []entry
		if !c.keeper.do(func() { dropped, err = c.keeper.dropNaming(found) }) {
			return ErrClosed
		}
		for _, e := range dropped {
			lost = append(lost, Lost{e.key.domain, e.row.info.Path})
		}
		return err
	})
	return lost, err
}

// takeAway moves a wrong NAR to quarantine, and reports whether there is now none
// of a hash that rows name.
func (k *keeper) takeAway(narHash nix.Hash, id fileID, reason error) (bool, error) {
	size, named, err := k.c.index.narSize(narHash)
	if err != nil || !named {
		return false, err
	}
	file := narName(narHash)
	info, err := k.c.root.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case idOf(info) != id && info.Mode().IsRegular() && uint64(info.Size()) == size:
		return false, nil // somebody else came first, and brought it anew
	default:
		k.c.counters.corrupt.Add(1)
		if err := k.quarantine(file); err != nil {
			return false, err
		}
	}
	k.c.log.Error("a NAR on disk is not what it was; it is dropped", "nar", narHash, "reason", reason)
	return true, nil
}

// dropNaming removes records whose NAR is gone and returns them.
func (k *keeper) dropNaming(found []entry) ([]entry, error) {
	recs, err := k.c.index.find(keysOf(found))
	if err != nil {
		return nil, err
	}
	var broken []entry
	for i, e := range found {
		if recs[i] != nil && recs[i].sameBytes(&e.row.record) && !hasLength(k.c.root, narName(e.row.info.NarHash), e.row.info.NarSize) {
			broken = append(broken, e)
		}
	}
	for _, e := range broken {
		k.c.log.Warn("dropped a path whose NAR was broken", "domain", e.key.domain, "path", e.row.info.Path)
	}
	if len(broken) == 0 {
		return nil, nil
	}
	k.c.counters.broken.Add(int64(len(broken)))
	return broken, k.remove(keysOf(broken), nil)
}

func keysOf(entries []entry) []key {
	keys := make([]key, len(entries))
	for i, e := range entries {
		keys[i] = e.key
	}
	return keys
}
