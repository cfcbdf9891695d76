package proxy

import (
	"errors"
	"path"
	"slices"
	"strings"
)

var (
	errNixosRebuild = errors.New("this host runs no commands, so nixos-rebuild can neither build nor switch here; " +
		"leave out --build-host and name this host in the machines file (nix.buildMachines) or in --builders, and give the machine to switch itself as --target-host")
	errNixCommand = errors.New("this host runs no Nix commands; run them on your own machine with --store ssh-ng://HOST")
)

// refusal says what to do instead of a command that is not in the table.
func refusal(words []string) error {
	words = unwrap(unshell(unwrap(words)))
	switch protocol, args := protocolOf(words); {
	case len(words) == 0:
		return errUnknownCommand
	case protocol.kind != commandUnknown && slices.ContainsFunc(args, isStoreOption):
		return errRemoteStore
	case protocol.kind != commandUnknown:
		return errUnknownCommand
	case isOfNixosRebuild(path.Base(words[0]), words[1:]):
		return errNixosRebuild
	case slices.Contains(nixCommands, path.Base(words[0])):
		return errNixCommand
	}
	return errUnknownCommand
}

// unshell returns the words behind sh -c 'exec ... "$@"' sh.
func unshell(words []string) []string {
	if len(words) > 4 && isProgram(words[0], "sh") && words[1] == "-c" {
		return words[4:]
	}
	return words
}

// nixCommands are those that work as well on the client's side.
var nixCommands = []string{
	"nix", "nix-store", "nix-build", "nix-shell", "nix-instantiate", "nix-collect-garbage", "nix-channel", "nix-hash", "nix-prefetch-url",
}

// isOfNixosRebuild recognises what nixos-rebuild and nixos-rebuild-ng run on
// the hosts of --build-host and --target-host, after the copy of the derivation
// or the system, which works here.
func isOfNixosRebuild(program string, args []string) bool {
	has := func(words ...string) bool {
		return slices.ContainsFunc(args, func(arg string) bool { return slices.Contains(words, arg) })
	}
	switch program {
	case "nix-env", "nix-copy-closure", "switch-to-configuration", "systemd-run":
		return true
	case "nix-store":
		return has("-r", "--realise", "--realize")
	case "nix":
		return has("build")
	case "test":
		return has("-w", "-f", "-d", "-e")
	case "readlink":
		return has("-f", "-e")
	case "uname":
		return has("-m", "-n")
	case "cat":
		return has("/proc/sys/kernel/hostname")
	case "pkill":
		return has("--full")
	case "mktemp", "rm":
		return slices.ContainsFunc(args, func(arg string) bool { return strings.Contains(arg, "nixos-rebuild") })
	}
	return false
}
