package proxy

import (
	"errors"
	"path"
	"strings"
)

// command is what a client's exec request asks for.
type command uint8

const (
	commandUnknown command = iota
	// commandDaemon is `nix-daemon --stdio`, the worker protocol of ssh-ng://.
	commandDaemon
	// commandServe is `nix-store --serve [--write]`, the protocol of ssh://.
	commandServe
)

var (
	errUnknownCommand = errors.New("this host runs no commands; it speaks Nix's remote store protocol (use ssh-ng:// store URIs)")
	errServeProtocol  = errors.New("ssh:// store URIs are not served here yet; write ssh-ng:// in the machines file instead")
	errRemoteStore    = errors.New("the store parameter remote-store (--store) is not allowed here; remove it from the store URI")
)

// parseCommand recognises the commands that Nix clients send. Nothing is ever
// run: the words are compared, and what is not known is refused. The program
// may have any leading directory, as users set remote-program.
func parseCommand(text string) (command, error) {
	words := strings.Fields(text)
	if len(words) < 2 {
		return commandUnknown, errUnknownCommand
	}
	program, args := path.Base(words[0]), words[1:]
	switch {
	case program == "nix-daemon" && args[0] == "--stdio":
		return commandDaemon, checkDaemonArgs(args[1:])
	case program == "nix-store" && args[0] == "--serve":
		return commandServe, errServeProtocol
	}
	return commandUnknown, errUnknownCommand
}

// checkDaemonArgs knows what clients put behind --stdio. --process-ops is said
// by some and changes nothing.
func checkDaemonArgs(args []string) error {
	for _, arg := range args {
		switch {
		case arg == "--process-ops":
		case arg == "--store" || strings.HasPrefix(arg, "--store="):
			return errRemoteStore
		default:
			return errUnknownCommand
		}
	}
	return nil
}
