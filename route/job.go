package route

import "strings"

// JobName is the name under which a derivation's duration is learned, from its name
// or that of one of its outputs: what is left without version, output and ".drv", as
// Nix splits names. "hello-2.12.1-dev" is "hello".
func JobName(name string) string {
	name = strings.TrimSuffix(name, ".drv")
	for i := 1; i+1 < len(name); i++ {
		if name[i] == '-' && !isLetter(name[i+1]) {
			return name[:i]
		}
	}
	return name
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
