package proxy

import (
	"errors"
	"slices"
	"strings"
)

// command is what a client's exec request asks for.
type command uint8

const (
	// commandUnknown comes with an error that says why.
	commandUnknown command = iota
	// commandDaemon is `nix-daemon --stdio`, the worker protocol of ssh-ng://.
	commandDaemon
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
	if !isPlain(text) {
		return commandUnknown, errUnknownCommand
	}
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' })
	if len(words) < 2 {
		return commandUnknown, errUnknownCommand
	}
	switch args := words[1:]; {
	case isProgram(words[0], "nix-daemon") && args[0] == "--stdio":
		return daemonCommand(args[1:])
	case isProgram(words[0], "nix-store") && args[0] == "--serve" && isServeArgs(args[1:]):
		return commandUnknown, errServeProtocol
	}
	return commandUnknown, errUnknownCommand
}

// isPlain says that a text is printable ASCII, which all that Nix sends is.
func isPlain(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}

// isProgram says that a word is a program's name, perhaps with a path before it.
func isProgram(word, name string) bool {
	dir, found := strings.CutSuffix(word, name)
	return found && (dir == "" || strings.HasSuffix(dir, "/")) && !strings.ContainsFunc(dir, notOfPath)
}

// notOfPath says that a shell would find more in a character than a path.
func notOfPath(r rune) bool {
	return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("/._-+@~=,:%", r)
}

// daemonCommand knows what clients put behind --stdio. --process-ops is said by
// some and changes nothing. What follows --store is quoted before Nix 2.20 and
// bare since then; it is refused either way.
func daemonCommand(args []string) (command, error) {
	switch {
	case len(args) == 0 || slices.Equal(args, []string{"--process-ops"}):
		return commandDaemon, nil
	case isStoreArg(args[0]):
		return commandUnknown, errRemoteStore
	}
	return commandUnknown, errUnknownCommand
}

func isServeArgs(args []string) bool {
	return len(args) == 0 || slices.Equal(args, []string{"--write"}) ||
		isStoreArg(args[0]) || args[0] == "--write" && isStoreArg(args[1])
}

func isStoreArg(arg string) bool { return arg == "--store" || strings.HasPrefix(arg, "--store=") }
