package upstream

import "strings"

// defaultProgram is looked up in the PATH that the builder's sshd gives us.
const defaultProgram = "nix-daemon"

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
	if t.program != "" {
		return programs{commands: []string{command(t.program)}}
	}
	commands := []string{command(defaultProgram)}
	for _, dir := range profilePaths {
		commands = append(commands, command(dir+defaultProgram))
	}
	return programs{commands: commands}
}

// command completes a program to what is executed. A setting with arguments is
// taken as it is: it may be a wrapper.
func command(program string) string {
	if strings.ContainsAny(program, " \t") {
		return program
	}
	return program + " --stdio"
}

// missing notes that a command does not exist. It returns false when all of them
// were tried.
func (p *programs) missing(tried int) bool {
	if p.current == tried {
		p.current = (tried + 1) % len(p.commands)
	}
	return tried+1 < len(p.commands)
}
