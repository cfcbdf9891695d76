package upstream

import (
	"strings"

	"nixbastion/policy"
)

// executable is what is started on a builder for a protocol. Its name is looked up
// in the PATH that the builder's sshd gives us.
type executable struct{ name, arguments string }

var (
	daemonProgram = executable{"nix-daemon", "--stdio"}
	storeProgram  = executable{"nix-store", "--serve --write"}
)

func (t *target) defaultProgram() executable {
	if t.protocol == policy.ProtocolServe {
		return storeProgram
	}
	return daemonProgram
}

// profilePaths are where Nix is installed when a builder's sshd gives its
// sessions a PATH without it, as many do. A shell there expands the tilde.
var profilePaths = []string{
	"/run/current-system/sw/bin/",        // NixOS
	"/nix/var/nix/profiles/default/bin/", // the installer, for several users
	"~/.nix-profile/bin/",                // for one user
	"~/.local/state/nix/profile/bin/",    // the same with use-xdg-base-directories
	"/usr/local/bin/",
	"/usr/bin/",
}

// programs are the commands that may start a daemon session, of which the first
// that exists is kept. The builder's mutex guards it.
type programs struct {
	commands []string
	current  int
}

// notFound is the status with which shells say that there is no such command.
const notFound = 127

// programs returns the configured command, or the ones to try.
func (t *target) programs() programs {
	standard := t.defaultProgram()
	if t.program != "" {
		return programs{commands: []string{standard.command(t.program)}}
	}
	commands := []string{standard.command(standard.name)}
	for _, dir := range profilePaths {
		commands = append(commands, standard.command(dir+standard.name))
	}
	return programs{commands: commands}
}

// command completes a path of the program to what is executed. A setting with
// arguments is taken as it is: it may be a wrapper.
func (p executable) command(path string) string {
	if strings.ContainsAny(path, " \t") {
		return path
	}
	return path + " " + p.arguments
}

// missing notes that a command does not exist. It returns false when all of them
// were tried.
func (p *programs) missing(tried int) bool {
	if p.current == tried {
		p.current = (tried + 1) % len(p.commands)
	}
	return tried+1 < len(p.commands)
}
