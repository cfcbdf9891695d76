package testbed

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A layer is what a host has over the root of its suite: a folder that the
// host's file system shows first.
type layer struct {
	dir string
	err error // the first that went wrong
}

// write makes a file that belongs to root.
func (l *layer) write(path, text string, mode os.FileMode) {
	l.writeAs(people[0], path, text, mode)
}

// writeAs makes a file that belongs to an account, and the folder around it.
func (l *layer) writeAs(a account, path, text string, mode os.FileMode) {
	if l.err != nil {
		return
	}
	file := filepath.Join(l.dir, path)
	l.err = errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), mode))
	if l.err == nil {
		// The second time against the umask.
		l.err = errors.Join(os.Chmod(file, mode), os.Chown(file, a.id, a.id))
	}
}

// makeLayer writes all that makes this host different from others of its suite.
func (h *Host) makeLayer() (string, error) {
	l := &layer{dir: filepath.Join(h.dir, "layer")}
	l.err = os.MkdirAll(l.dir, 0o755)
	l.write("etc/hostname", h.spec.Name+"\n", 0o644)
	l.write("etc/hosts", "", 0o644)
	l.write("etc/ssh/ssh_known_hosts", "", 0o644)
	l.write("etc/testbed/init", initScript, 0o755)
	l.write("etc/testbed/systemd", systemdScript, 0o755)
	l.write("etc/nix/nix.conf", h.spec.nixConf(), 0o644)
	l.write(machinesFile, machinesText(h.spec.Machines), 0o644)
	l.write("etc/ssh/sshd_config", h.spec.sshdConfig(), 0o644)
	l.write(hostKeyFile, string(h.bed.HostKey(h.spec.Name).PrivatePEM), 0o600)
	for name, keys := range h.spec.Authorize {
		a, err := lookupAccount(name)
		l.err = errors.Join(l.err, err)
		l.write(authorizedKeys(a), authorizedText(keys), 0o644)
	}
	for _, key := range h.spec.Keys {
		l.write(key.File(), string(key.PrivatePEM), 0o600)
	}
	h.spec.slotFiles(l)
	return l.dir, l.err
}

const hostKeyFile = "/etc/ssh/ssh_host_ed25519_key"

// authorizedKeys is where sshd looks for an account's keys: not in its home, so
// that root's on a builder and on a client are no different.
func authorizedKeys(a account) string { return "/etc/ssh/authorized_keys/" + a.name }

func authorizedText(keys []Key) string {
	var text strings.Builder
	for _, k := range keys {
		fmt.Fprintln(&text, k.AuthorizedLine())
	}
	return text.String()
}

// sshdConfig puts the host's own lines first, since in this file the first wins.
func (s HostSpec) sshdConfig() string {
	return strings.Join(append(slices.Clone(s.SSHD),
		"HostKey "+hostKeyFile,
		"AuthorizedKeysFile /etc/ssh/authorized_keys/%u",
		"StrictModes no",
		"UsePAM no",
		"UseDNS no",
		"PasswordAuthentication no",
		"KbdInteractiveAuthentication no",
		"PermitRootLogin prohibit-password",
		// Limits are tested where they are the matter; elsewhere they are in the way.
		"MaxStartups 1000",
		"MaxSessions 1000",
		"AcceptEnv LANG NIX_*",
		"PidFile /run/sshd.pid",
		"Subsystem sftp internal-sftp",
		""), "\n")
}

// nixConf turns off what needs the internet, the sandbox or a patient disk.
func (s HostSpec) nixConf() string {
	buildUsers := ""
	if s.Kind == Builder {
		buildUsers = "nixbld"
	}
	return strings.Join(append([]string{
		"sandbox = false",
		"substituters =",
		"fsync-metadata = false",
		"experimental-features = nix-command flakes ca-derivations",
		"trusted-users = root " + TrustedAccount,
		"build-users-group = " + buildUsers,
		fmt.Sprintf("max-jobs = %d", s.MaxJobs),
		"system = " + s.System,
		"extra-platforms = " + strings.Join(s.ExtraPlatforms, " "),
		"system-features = " + strings.Join(s.Features, " "),
	}, append(slices.Clone(s.NixConf), "")...), "\n")
}

// sortedBinds gives arguments for the boot script in an order that is always
// the same.
func (s HostSpec) sortedBinds() []string {
	var pairs []string
	for _, inner := range slices.Sorted(maps.Keys(s.Binds)) {
		pairs = append(pairs, s.Binds[inner]+"="+inner)
	}
	return pairs
}
