package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debianKeyring is whose signatures are accepted: those of Debian's archive
// and of nobody else, whatever other sources the machine trusts.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// installPackages installs on the machine itself.
func installPackages(ctx context.Context, pkgs ...string) error {
	if _, err := run(ctx, "apt-get", "update"); err != nil {
		return err
	}
	args := append([]string{"-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends"}, pkgs...)
	_, err := run(ctx, "apt-get", args...)
	return err
}

// run returns the standard output of a command, and its whole output in the
// error if it ends with another status than 0.
func run(ctx context.Context, name string, args ...string) (string, error) {
	path, err := lookPath(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w\n%s%s", cmd, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String(), nil
}

// aptBox is an apt of its own for one suite: it shares the machine's settings
// (proxies among them) and keys, and neither its sources nor its state. Its
// dpkg status is empty, so what it resolves is the whole closure of a system.
type aptBox struct {
	dir   string
	suite string
}

func openAptBox(suite string) (*aptBox, error) {
	b := &aptBox{dir: filepath.Join(cacheDir(), "apt", suite), suite: suite}
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	return b, os.WriteFile(filepath.Join(b.dir, "status"), nil, 0o644)
}

func (b *aptBox) apt(ctx context.Context, args ...string) (string, error) {
	options := []string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(b.dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::Etc::preferences=/dev/null",
		"-o", "Dir::Etc::preferencesparts=/dev/null",
		"-o", "Dir::State=" + filepath.Join(b.dir, "state"),
		"-o", "Dir::State::status=" + filepath.Join(b.dir, "status"),
		"-o", "Dir::Cache=" + filepath.Join(b.dir, "cache"),
		"-o", "Acquire::Languages=none",
		"-o", "APT::Install-Recommends=false",
		// The account _apt may not write here; signatures are checked all the same.
		"-o", "APT::Sandbox::User=root",
		// A frozen mirror is welcome: it keeps a moving suite at the version that
		// tests name. What is old is still what Debian signed.
		"-o", "Acquire::Check-Valid-Until=false",
	}
	return run(ctx, "apt-get", append(options, args...)...)
}

// update fetches the package lists from the first of the machine's mirrors
// that carries the suite with a good signature. A keyring older than the suite
// does not know its key: then the machine's own sources have a newer one.
func (b *aptBox) update(ctx context.Context, log *slog.Logger) error {
	err := b.updateFromAny(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	log.Info("upgrade Debian's keyring and try again", "suite", b.suite, "because", err)
	if upgradeErr := installPackages(ctx, "debian-archive-keyring"); upgradeErr != nil {
		return errors.Join(err, upgradeErr)
	}
	return b.updateFromAny(ctx)
}

func (b *aptBox) updateFromAny(ctx context.Context) error {
	mirrors, err := machineMirrors()
	if err != nil {
		return err
	}
	var errs []error
	for _, mirror := range mirrors {
		if err := b.updateFrom(ctx, mirror); err != nil {
			errs = append(errs, err)
			continue
		}
		return nil
	}
	return fmt.Errorf("fetch package lists of %s: %w", b.suite, errors.Join(errs...))
}

func (b *aptBox) updateFrom(ctx context.Context, mirror string) error {
	line := fmt.Sprintf("deb [signed-by=%s target=Packages] %s %s main\n", debianKeyring, mirror, b.suite)
	if err := os.WriteFile(filepath.Join(b.dir, "sources.list"), []byte(line), 0o644); err != nil {
		return err
	}
	// Without it apt-get ends with status 0 when a mirror is away.
	_, err := b.apt(ctx, "-o", "APT::Update::Error-Mode=any", "update")
	return err
}

// download brings the closure of pkgs and returns the files, in the order in
// which apt would unpack them.
func (b *aptBox) download(ctx context.Context, pkgs []string) ([]string, error) {
	if _, err := b.apt(ctx, append([]string{"--download-only", "-y", "install"}, pkgs...)...); err != nil {
		return nil, err
	}
	return b.plan(ctx, pkgs)
}

// plan returns the files of the closure of pkgs, whether they are there or not.
func (b *aptBox) plan(ctx context.Context, pkgs []string) ([]string, error) {
	plan, err := b.apt(ctx, append([]string{"--simulate", "install"}, pkgs...)...)
	if err != nil {
		return nil, err
	}
	var files []string
	for line := range strings.Lines(plan) {
		if name, ok := plannedArchive(line); ok {
			files = append(files, filepath.Join(b.dir, "cache/archives", name))
		}
	}
	return files, nil
}

// plannedArchive reads "Inst NAME (VERSION SOURCE [ARCH])" of a simulated
// installation and returns the name under which apt keeps the archive.
func plannedArchive(line string) (string, bool) {
	name, rest, ok := strings.Cut(strings.TrimPrefix(line, "Inst "), " (")
	if !ok || !strings.HasPrefix(line, "Inst ") {
		return "", false
	}
	version, rest, ok := strings.Cut(rest, " ")
	if !ok {
		return "", false
	}
	_, rest, ok = strings.Cut(rest, "[")
	if !ok {
		return "", false
	}
	arch, _, ok := strings.Cut(rest, "]")
	if !ok {
		return "", false
	}
	return fmt.Sprintf("%s_%s_%s.deb", name, strings.ReplaceAll(version, ":", "%3a"), arch), true
}
