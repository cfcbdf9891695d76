package policy

import (
	"regexp"
	"strings"
)

// protocolCommand has the commands of Nix's protocols, with any directory before
// the program. Nothing is run: the directory means nothing.
var protocolCommand = regexp.MustCompile(`^(?:[A-Za-z0-9/._+@~=,:%-]*/)?(nix-daemon --stdio|nix-store --serve|nix-store --serve --write)$`)

// forcedCommand reads what a key or certificate is bound to. It returns one of
// "nix-daemon --stdio", "nix-store --serve" and "nix-store --serve --write", and
// false for anything else: what the proxy cannot serve must not turn into
// something that it can.
func forcedCommand(text string) (string, bool) {
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' })
	m := protocolCommand.FindStringSubmatch(strings.Join(words, " "))
	if m == nil {
		return "", false
	}
	return m[1], true
}
