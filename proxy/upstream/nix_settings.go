package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// NixSettings are what a builder's own Nix is set to, for all that its nix.conf, its
// defaults and our account's view of them say. They come from the builder, which may
// lie.
type NixSettings struct {
	// System is what it builds for, with ExtraPlatforms and Features besides.
	System         string
	ExtraPlatforms []string
	Features       []string
	// TrustedUsers are accounts, groups with "@" before, or "*".
	TrustedUsers []string
	// Sandbox is "true", "relaxed" or "false"; empty if it is not known.
	Sandbox string
	// Account is what the builder calls ours, and Groups are those it is in.
	Account string
	Groups  []string
	// HiddenKVM says that there is a /dev/kvm which our account may not open: whether
	// its daemon has the feature kvm by default is not to be seen.
	HiddenKVM bool
}

// maxSettingsAnswer is the most that a builder may say about its settings, in bytes;
// some 500 are usual, and there may be many trusted users.
const maxSettingsAnswer = 64 << 10

// settingsGrace is how long the output of the script is waited for on this machine when
// it has ended.
const settingsGrace = time.Second

// settingsScript has a builder's Nix print its settings. It is as careful as loadScript
// with the account's shell and PATH. The account's own nix.conf is left out: the daemon
// builds, which does not read it. Until 2.18 it was nix show-config, and before 2.4
// there was no experimental feature to allow.
var settingsScript = settingsScriptIn("")

// settingsScriptIn looks for Nix in a directory first, if that is not "".
func settingsScriptIn(dir string) string {
	if dir != "" {
		dir += ":"
	}
	return "exec /bin/sh -c '" + strings.Join([]string{
		`: nixbastion asks for the settings of Nix`,
		`exec 2>/dev/null`,
		`PATH=` + dir + `/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:$PATH:$HOME/.nix-profile/bin`,
		`LC_ALL=C`,
		`NIX_USER_CONF_FILES=/dev/null`,
		`export PATH LC_ALL NIX_USER_CONF_FILES`,
		`x=--extra-experimental-features`,
		`{ nix $x nix-command config show || nix $x nix-command show-config || nix show-config; } </dev/null | ` +
			`while read -r k e v; do case $k in system|extra-platforms|system-features|trusted-users|sandbox) echo "$k = $v" ;; esac; done`,
		`echo "account = $(id -un)"`,
		`echo "groups = $(id -Gn)"`,
		`if test -e /dev/kvm; then test -r /dev/kvm && test -w /dev/kvm || echo "hidden = kvm"; fi`,
		`echo "end ="`,
	}, "; ") + "'"
}

// safeDirectory is one that any shell takes for itself.
var safeDirectory = regexp.MustCompile(`^/[A-Za-z0-9_/.+-]*$`)

// settingsScriptFor looks beside the program that answers.
func settingsScriptFor(command string) string {
	program, _, _ := strings.Cut(command, " ")
	if dir := path.Dir(program); safeDirectory.MatchString(dir) {
		return settingsScriptIn(dir)
	}
	return settingsScript
}

// checkSettings asks for the settings once, on the connection of a session.
func (b *builder) checkSettings(ctx context.Context, d *daemon) (NixSettings, error) {
	ctx, cancel := context.WithTimeout(ctx, b.pool.opts.SessionTimeout)
	defer cancel()
	remote, ssh := d.process.(*remoteProcess)
	if !ssh {
		return ownSettings(ctx, settingsScript)
	}
	p, err := b.startBeside(ctx, remote, settingsScriptFor(d.command))
	if err != nil {
		return NixSettings{}, err
	}
	defer p.Close()
	type outcome struct {
		s   NixSettings
		err error
	}
	done := make(chan outcome, 1)
	b.pool.running.Go(func() {
		// What answers instead of a shell sees that this is not its protocol.
		_, _ = io.WriteString(p, "settings\n")
		s, err := readSettings(p)
		done <- outcome{s, err}
	})
	select {
	case o := <-done:
		if errors.Is(o.err, io.ErrUnexpectedEOF) {
			return NixSettings{}, fmt.Errorf("does not run a shell for account '%s'", b.target.user)
		}
		return o.s, o.err
	case <-ctx.Done():
		return NixSettings{}, fmt.Errorf("does not answer within %s what its settings are", b.pool.opts.SessionTimeout)
	}
}

// ownSettings are those of this machine, for the builder that is its daemon. What runs
// for that is gone when ctx ends.
func ownSettings(ctx context.Context, script string) (NixSettings, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = settingsGrace
	out, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		return NixSettings{}, errors.New("does not answer what its settings are")
	case err != nil:
		return NixSettings{}, fmt.Errorf("cannot be asked for its settings: %w", err)
	}
	return readSettings(strings.NewReader(string(out)))
}

// readSettings reads what settingsScript says, up to its end.
func readSettings(r io.Reader) (NixSettings, error) {
	text, err := readToMark(r, "end =\n")
	if err != nil {
		return NixSettings{}, err
	}
	s, seen := NixSettings{}, map[string]bool{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " =")
		if !ok || seen[key] {
			return NixSettings{}, junk(line)
		}
		seen[key] = true
		if !s.set(key, strings.Fields(clean(value))) {
			return NixSettings{}, junk(line)
		}
	}
	if s.System == "" {
		return NixSettings{}, errors.New("has no program nix that tells its settings")
	}
	return s, nil
}

func (s *NixSettings) set(key string, words []string) bool {
	one := strings.Join(words, " ")
	switch key {
	case "system":
		s.System = one
	case "extra-platforms":
		s.ExtraPlatforms = words
	case "system-features":
		s.Features = words
	case "trusted-users":
		s.TrustedUsers = words
	case "sandbox":
		s.Sandbox = one
	case "account":
		s.Account = one
	case "groups":
		s.Groups = words
	case "hidden":
		s.HiddenKVM = one == "kvm"
	default:
		return false
	}
	return true
}

// readToMark returns what comes before a mark. Without one the error is
// io.ErrUnexpectedEOF.
func readToMark(r io.Reader, mark string) (string, error) {
	var text strings.Builder
	piece := make([]byte, 4<<10)
	for {
		n, err := r.Read(piece)
		text.Write(piece[:n])
		if before, found := strings.CutSuffix(text.String(), mark); found {
			return before, nil
		}
		switch {
		case text.Len() > maxSettingsAnswer:
			return "", fmt.Errorf("says more than %d bytes", maxSettingsAnswer)
		case err == io.EOF:
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		}
	}
}

// builds reports whether it builds for a system.
func (s *NixSettings) builds(system string) bool {
	return system == s.System || slices.Contains(s.ExtraPlatforms, system)
}

// trusts reports whether it trusts our account.
func (s *NixSettings) trusts() bool {
	return s.Account == "root" || slices.ContainsFunc(s.TrustedUsers, func(entry string) bool {
		group, isGroup := strings.CutPrefix(entry, "@")
		return entry == "*" || entry == s.Account || isGroup && slices.Contains(s.Groups, group)
	})
}

// usualFeatures reports whether the features look like those that Nix has when no
// nix.conf says which. Only then kvm depends on who may open /dev/kvm.
func (s *NixSettings) usualFeatures() bool {
	for _, name := range []string{"nixos-test", "benchmark", "big-parallel"} {
		if !slices.Contains(s.Features, name) {
			return false
		}
	}
	return true
}
