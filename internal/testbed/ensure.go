package testbed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"

	"syscall"
)

// Ensure makes the machine ready: it installs with apt which commands are
// missing and unpacks the roots of the given Nix versions (all of them when
// none is named). What is there already is left alone and costs nothing, so
// everybody may call it; two processes that do wait for each other. log tells
// about the slow steps and may be nil.
func Ensure(ctx context.Context, log *slog.Logger, versions ...string) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := checkPrivileges(); err != nil {
		return err
	}
	if err := ensureMachine(ctx, log); err != nil {
		return err
	}
	if len(versions) == 0 {
		versions = []string{Nix28, Nix226, Nix234}
	}
	for _, v := range versions {
		if _, err := ensureRoot(ctx, log, v); err != nil {
			return err
		}
	}
	return nil
}

// errPrivileges is what a user reads who lacks the rights. Nothing is skipped
// for want of them: a suite that shows nothing must not look green.
var errPrivileges = errors.New("testbed: needs root: network namespaces and mounts; run `sudo make test`")

// checkPrivileges asks the kernel for the very namespaces that hosts need,
// since root in a container may be without them.
func checkPrivileges() error {
	if os.Geteuid() != 0 {
		return errPrivileges
	}
	cmd := exec.Command("/bin/sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: hostNamespaces}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w (%w %s)", errPrivileges, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// A tool is a command or file that the testbed needs on the machine itself,
// and the Debian package that has it.
type tool struct{ file, pkg string }

var machineTools = []tool{
	{"ip", "iproute2"},
	{"nsenter", "util-linux"},
	{"pivot_root", "util-linux"},
	{"mount", "mount"},
	{"chroot", "coreutils"},
	{"tar", "tar"},
	{"dpkg-deb", "dpkg"},
	{"ldconfig", "libc-bin"},
	{debianKeyring, "debian-archive-keyring"},
}

func ensureMachine(ctx context.Context, log *slog.Logger) error {
	missing := missingPackages()
	if len(missing) == 0 {
		return nil
	}
	log.Info("install on this machine", "packages", missing)
	return installPackages(ctx, missing...)
}

func missingPackages() []string {
	var missing []string
	for _, t := range machineTools {
		if _, err := lookPath(t.file); err != nil {
			missing = append(missing, t.pkg)
		}
	}
	return missing
}

// lookPath finds a command of the administrator's, also where PATH is that of
// a plain user; a name with a slash is looked up as a file.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		_, err := os.Stat(name)
		return name, err
	}
	if found, err := exec.LookPath(name); err == nil {
		return found, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if found, err := exec.LookPath(dir + name); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("testbed: command %s is missing", name)
}
