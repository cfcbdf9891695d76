package testbed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
)

// lowerFolders returns the folders that the host's file system is made of below
// its own layer, the first to show left, as overlayfs wants them. What this
// machine lacks of them is made.
func (h *Host) lowerFolders(ctx context.Context) (string, error) {
	root, err := ensureRoot(ctx, h.bed.log, h.spec.Nix)
	if err != nil || len(h.spec.Packages) == 0 {
		return root, err
	}
	extra, err := ensureExtra(ctx, h.bed.log, suites[h.spec.Nix], h.spec.Packages)
	return extra + ":" + root, err
}

// ensureExtra returns a folder with packages and all that they need beyond the
// root of their suite, and makes it if need be. So roots stay small, and who
// needs a package does not change them.
func ensureExtra(ctx context.Context, log *slog.Logger, s suite, packages []string) (string, error) {
	dir := filepath.Join(cacheDir(), "roots", s.name+"-extra-"+s.extraRecipe(packages))
	return dir, makeOnce(ctx, log, s, dir, func() error { return makeExtra(ctx, log, s, packages, dir) })
}

// extraRecipe names how such a folder is made: what is in the root decides what
// is not in here.
func (s suite) extraRecipe(packages []string) string {
	h := sha256.New()
	fmt.Fprintln(h, s.recipe(), packages)
	return hex.EncodeToString(h.Sum(nil))[:8]
}

func makeExtra(ctx context.Context, log *slog.Logger, s suite, packages []string, dir string) error {
	log.Info("download more packages", "suite", s.name, "packages", packages)
	box, err := openAptBox(s.name)
	if err != nil {
		return err
	}
	if err := box.update(ctx, log); err != nil {
		return err
	}
	inRoot, err := box.plan(ctx, s.allPackages())
	if err != nil {
		return err
	}
	archives, err := box.download(ctx, append(s.allPackages(), packages...))
	if err != nil {
		return err
	}
	archives = slices.DeleteFunc(archives, func(file string) bool { return slices.Contains(inRoot, file) })
	partial := dir + ".partial" // one at most: the caller holds the lock
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	// Libraries are found without ldconfig, by the loader's own list of folders.
	if err := unpackAll(ctx, partial, archives); err != nil {
		return err
	}
	return os.Rename(partial, dir)
}
