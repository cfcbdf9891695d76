package testbed

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The versions of Nix that a host can have: what Debian 12, 13 and 14 carry.
const (
	Nix28  = "2.8.0"
	Nix226 = "2.26.3"
	Nix234 = "2.34.8"
)

// A suite is the Debian release that a version of Nix comes from.
type suite struct {
	name string
	// nix is the version that the suite carried when this was written.
	nix string
	// packages are what this root has and others have not.
	packages []string
}

var suites = map[string]suite{
	Nix28:  {name: "bookworm", nix: Nix28},
	Nix226: {name: "trixie", nix: Nix226},
	Nix234: {name: "forky", nix: Nix234, packages: []string{"haproxy"}},
}

var rootPackages = []string{
	"base-files", "base-passwd", "bash", "dash", "coreutils", "util-linux", "mount", "grep", "sed", "mawk", "findutils",
	"procps", "iproute2", "tar", "gzip", "nix-bin", "openssh-server", "openssh-client", "busybox-static",
}

func (s suite) allPackages() []string {
	return append(append([]string{}, rootPackages...), s.packages...)
}

// skeleton is what lies over the unpacked packages of every root: the files
// that the packages' own scripts would write, were they run.
//
//go:embed skeleton
var skeleton embed.FS

// recipeVersion goes up when roots are made in another way.
const recipeVersion = 1

// recipe names how a root is made. A root made by another recipe has another
// folder, so a changed list of packages needs no cleaning up by hand.
func (s suite) recipe() string {
	h := sha256.New()
	fmt.Fprintln(h, recipeVersion, s.name, s.allPackages())
	fs.WalkDir(skeleton, ".", func(path string, d fs.DirEntry, err error) error {
		if d.IsDir() {
			return err
		}
		text, err := skeleton.ReadFile(path)
		fmt.Fprintf(h, "%s\n%s\n", path, text)
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:8]
}

// ensureRoot returns the root of a Nix version and makes it if need be. The
// folder appears by a rename, so whoever sees it sees all of it.
func ensureRoot(ctx context.Context, log *slog.Logger, version string) (string, error) {
	s, ok := suites[version]
	if !ok {
		return "", fmt.Errorf("testbed: no root has Nix %q", version)
	}
	root := filepath.Join(cacheDir(), "roots", s.name+"-"+s.recipe())
	return root, makeOnce(ctx, log, s, root, func() error { return makeRoot(ctx, log, s, root) })
}

// makeOnce makes a folder of a suite unless it is there. Of several processes
// that want it one makes it and the others wait.
func makeOnce(ctx context.Context, log *slog.Logger, s suite, dir string, makeIt func() error) error {
	if exists(dir) {
		return nil
	}
	unlock, err := lock(ctx, filepath.Join(cacheDir(), "locks", s.name), func() {
		log.Info("wait for another process that unpacks the same root", "suite", s.name)
	})
	if err != nil {
		return err
	}
	defer unlock.Close()
	if exists(dir) {
		return nil
	}
	if err := makeIt(); err != nil {
		return fmt.Errorf("make root of Debian %s: %w", s.name, err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func makeRoot(ctx context.Context, log *slog.Logger, s suite, root string) error {
	log.Info("download packages", "suite", s.name)
	box, err := openAptBox(s.name)
	if err != nil {
		return err
	}
	if err := box.update(ctx, log); err != nil {
		return err
	}
	archives, err := box.download(ctx, s.allPackages())
	if err != nil {
		return err
	}
	s.warnOtherVersion(log, archives)
	log.Info("unpack", "suite", s.name, "packages", len(archives))
	partial := root + ".partial" // one at most: the caller holds the lock
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := fillRoot(ctx, partial, archives); err != nil {
		return err
	}
	return os.Rename(partial, root)
}

// unpackAll unpacks archives into a new folder.
func unpackAll(ctx context.Context, root string, archives []string) error {
	if err := mergedUsr(root); err != nil {
		return err
	}
	for _, archive := range archives {
		if err := unpack(ctx, archive, root); err != nil {
			return err
		}
	}
	return nil
}

func fillRoot(ctx context.Context, root string, archives []string) error {
	if err := unpackAll(ctx, root, archives); err != nil {
		return err
	}
	if err := copySkeleton(root); err != nil {
		return err
	}
	if err := finishRoot(root); err != nil {
		return err
	}
	_, err := run(ctx, "ldconfig", "-r", root)
	return err
}

// mergedUsr lays the links of a merged /usr first. Packages of bookworm still
// have files below /bin and /lib, which tar then puts where the links lead.
func mergedUsr(root string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}

func unpack(ctx context.Context, archive, root string) error {
	script := `set -e; dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink \
		--exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale --exclude=./usr/share/info`
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script, "unpack", archive, root)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w\n%s", archive, err, out)
	}
	return nil
}

func copySkeleton(root string) error {
	return fs.WalkDir(skeleton, "skeleton", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(root, strings.TrimPrefix(path, "skeleton"))
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		text, err := skeleton.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, text, 0o644)
	})
}

// finishRoot makes what an embedded tree cannot hold: folders that are empty
// or not root's, links and modes.
func finishRoot(root string) error {
	for _, dir := range []string{"nix", "run", "proc", "dev", "mnt", "tmp", "root", "var/log", "var/lib/testbed", "var/empty", "etc/testbed"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, a := range people {
		home := filepath.Join(root, a.home)
		if err := errors.Join(os.MkdirAll(home, 0o700), os.Chown(home, a.id, a.id)); err != nil {
			return err
		}
	}
	awk := filepath.Join(root, "usr/bin/awk")
	if err := os.Symlink("mawk", awk); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := accountFiles(root); err != nil {
		return err
	}
	return os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky)
}

// warnOtherVersion tells when a suite has moved on: forky is still moving, and
// a test that names a version should be known to run another.
func (s suite) warnOtherVersion(log *slog.Logger, archives []string) {
	for _, archive := range archives {
		name := filepath.Base(archive)
		if strings.HasPrefix(name, "nix-bin_") && !strings.HasPrefix(name, "nix-bin_"+s.nix) {
			log.Warn("Debian carries another version of Nix now", "suite", s.name, "wanted", s.nix, "got", name)
		}
	}
}
