package proxy

import (
	"fmt"
	"slices"
	"strings"
)

// programs are those that scripts and guides look for on a builder.
var programs = []string{"nix", "nix-daemon", "nix-store"}

// isProbe recognises the small questions by which guides and scripts find out
// whether a host is there and has Nix.
func isProbe(words []string) bool {
	switch name, args := words[0], words[1:]; name {
	case "true":
		return len(args) == 0
	case "echo":
		return !slices.ContainsFunc(args, notPlainWord)
	case "type", "which":
		return len(args) > 0 && !slices.ContainsFunc(args, notPlainWord)
	case "command":
		return len(args) > 1 && args[0] == "-v" && !slices.ContainsFunc(args[1:], notPlainWord)
	default:
		return slices.Contains(programs, name) && len(args) == 1 && args[0] == "--version"
	}
}

// notPlainWord says that some shell, or echo itself, would take a word for more
// than itself.
func notPlainWord(word string) bool {
	return strings.HasPrefix(word, "-") || strings.ContainsFunc(word, func(r rune) bool { return r != ' ' && notOfPath(r) })
}

// answerProbe answers a probe as a shell would whose builtins the programs are.
func (p *Proxy) answerProbe(x *Exec, words []string) int {
	switch name, args := words[0], words[1:]; name {
	case "true":
		return 0
	case "echo":
		x.print(x.Stdout, strings.Join(args, " ")+"\n")
		return 0
	case "type":
		return x.lookUp(args, func(name string) string { return name + " is answered by nixbastion" }, "%s: not found")
	case "which":
		return x.lookUp(args, func(name string) string { return name }, "")
	case "command":
		return x.lookUp(args[1:], func(name string) string { return name }, "")
	default:
		x.print(x.Stdout, fmt.Sprintf("%s (Nix) %s\n", name, p.daemonVersion()))
		return 0
	}
}

// lookUp prints a line for each name that is known here. Its status is 1 if one
// is not; missing says so, unless empty.
func (x *Exec) lookUp(names []string, found func(string) string, missing string) (status int) {
	for _, name := range names {
		if slices.Contains(programs, name) {
			x.print(x.Stdout, found(name)+"\n")
			continue
		}
		status = 1
		if missing != "" {
			x.print(x.Stderr, "nixbastion: "+fmt.Sprintf(missing, name)+"\n")
		}
	}
	return status
}
