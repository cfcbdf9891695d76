package proxy

import (
	"errors"
	"slices"
	"strings"

	"nixbastion/policy"
)

// The commands that a client may ask for. Nothing is ever run: the words are
// compared, and what is not in this table is refused.
//
//	nix-daemon --stdio            the worker protocol, ssh-ng:// (serveDaemon)
//	nix-store --serve [--write]   the serve protocol, ssh:// (serveStore)
//	type, command -v, which       of the programs that clients look for (probe.go)
//	true, echo, --version
//	status, why, builds, log ...  how things stand here (talk.go)

// commandKind is what a client's exec request asks for.
type commandKind uint8

const (
	// commandUnknown comes with an error that says why.
	commandUnknown commandKind = iota
	// commandDaemon is the worker protocol of ssh-ng://.
	commandDaemon
	// commandServe is the serve protocol of ssh://.
	commandServe
	// commandProbe is one of the small questions of scripts.
	commandProbe
	// commandTalk is a question of a person or a program about the proxy itself.
	commandTalk
)

// command is an exec request that was recognised.
type command struct {
	kind commandKind
	// write says that nix-store --serve came with --write. All clients say it,
	// also those that only read.
	write bool
	// words are those of a probe or a question.
	words []string
}

var (
	errUnknownCommand = errors.New("this host runs no commands; it serves Nix's stores ssh-ng://HOST and ssh://HOST, and `ssh HOST help` says what else it answers")
	errRemoteStore    = errors.New("the store parameter remote-store (--store) is not allowed here; remove it from the store URI")
	errRemoteProgram  = errors.New("the store parameter remote-program is not allowed here; remove it from the store URI")
)

// forcedCommand is what the client reads where the admin's own command for a key
// is none of the table.
const forcedCommand = "the command that is set for this key is none that this host serves; ask its admin"

// parseCommand recognises the commands of the table.
func parseCommand(text string, allowed policy.Commands) (command, error) {
	words, plain := splitWords(text)
	if !plain || len(words) == 0 {
		return command{}, refusal(words)
	}
	if c, known := questionCommand(words); known {
		return c, nil
	}
	c, err := protocolCommand(words, allowed)
	if err == nil && c.kind == commandUnknown {
		err = refusal(words)
	}
	return c, err
}

// questionCommand recognises probes and questions about the proxy.
func questionCommand(words []string) (c command, known bool) {
	switch {
	case optionsOf[words[0]] != nil:
		return command{kind: commandTalk, words: words}, true
	case isProbe(words):
		return command{kind: commandProbe, words: words}, true
	}
	return command{}, false
}

// protocolCommand recognises the programs of Nix that speak a protocol, as users
// name them in remote-program: with any directory before them, and with what
// makes them run as somebody else. It returns commandUnknown, and no error, for
// everything else.
func protocolCommand(words []string, allowed policy.Commands) (command, error) {
	program := unwrap(words)
	c, args := protocolOf(program)
	if c.kind == commandUnknown {
		return c, nil
	}
	storeNamed, ok := c.options(args)
	switch {
	case !ok:
		return command{}, nil
	case allowed.PlainProgram && (len(program) < len(words) || strings.Contains(program[0], "/") || isProgram(program[0], "nix")):
		return command{}, errRemoteProgram
	case storeNamed && allowed.RemoteStore != policy.RemoteStoreIgnore:
		return command{}, errRemoteStore
	}
	return c, nil
}

// protocolOf tells the protocol, and what stands behind the words that ask for it.
func protocolOf(words []string) (c command, args []string) {
	starts := func(program string, words []string, more ...string) bool {
		return len(words) > len(more) && isProgram(words[0], program) && slices.Equal(words[1:len(more)+1], more)
	}
	switch {
	case starts("nix-daemon", words, "--stdio"):
		return command{kind: commandDaemon}, words[2:]
	case starts("nix", words, "daemon", "--stdio"):
		return command{kind: commandDaemon}, words[3:]
	case starts("nix-store", words, "--serve"):
		return command{kind: commandServe}, words[2:]
	}
	return command{}, nil
}

// options reads what clients put behind --stdio and --serve, each once. ok is
// false for anything else. --process-ops is said by some and changes nothing. A
// URI that is not quoted may have fallen into several words.
func (c *command) options(args []string) (storeNamed, ok bool) {
	processOps := false
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--write" && c.kind == commandServe && !c.write:
			c.write = true
		case arg == "--process-ops" && c.kind == commandDaemon && !processOps:
			processOps = true
		case isStoreOption(arg) && !storeNamed:
			storeNamed = true
			args = dropWhile(args, func(word string) bool { return !strings.HasPrefix(word, "--") })
		default:
			return false, false
		}
	}
	return storeNamed, true
}

func isStoreOption(arg string) bool { return arg == "--store" || strings.HasPrefix(arg, "--store=") }

// unwrap returns a command without what runs it as another user or with other
// variables: remote-program may have several words.
func unwrap(words []string) []string {
	for {
		rest := unwrapOnce(words)
		if len(rest) == len(words) || len(rest) == 0 {
			return rest
		}
		words = rest
	}
}

func unwrapOnce(words []string) []string {
	if len(words) == 0 {
		return words
	}
	switch rest := words[1:]; words[0] {
	case "exec":
		return rest
	case "sudo", "doas":
		return dropWhile(rest, func(word string) bool { return strings.HasPrefix(word, "-") })
	case "env", "/usr/bin/env":
		return dropWhile(rest, func(word string) bool { return word == "-i" || strings.Contains(word, "=") })
	}
	return words
}

func dropWhile(words []string, drop func(string) bool) []string {
	i := slices.IndexFunc(words, func(word string) bool { return !drop(word) })
	if i < 0 {
		return nil
	}
	return words[i:]
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
