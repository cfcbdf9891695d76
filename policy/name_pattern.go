package policy

import (
	"regexp"
	"strings"
)

// patternGrammar is that of the names of derivations, and "*".
var patternGrammar = regexp.MustCompile(`^[A-Za-z0-9*+._?=-]{1,211}$`)

// checkPattern refuses patterns that no name could ever match.
func checkPattern(pattern string) error {
	switch {
	case !patternGrammar.MatchString(pattern):
		return refuse(`names have letters, digits and + - . _ ? =, up to 211 of them; "*" stands for any text, and nothing else is special`,
			"%s matches no name of a derivation", quote(pattern))
	case strings.HasSuffix(pattern, ".drv"):
		return refuse("write "+quote(strings.TrimSuffix(pattern, ".drv"))+": the name is what stands between the hash and .drv",
			"%s matches no name of a derivation", quote(pattern))
	}
	return nil
}

// MatchName reports whether the name of a derivation (without its hash and .drv)
// matches a pattern of the policy file, in which "*" stands for any text, also none. It
// takes time in proportion to the two together.
func MatchName(pattern, name string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	name, ok := strings.CutPrefix(name, head)
	if !star || !ok {
		return ok && name == ""
	}
	// The earliest place for each part leaves most for those behind it, so nothing is
	// ever tried again.
	for {
		part, behind, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(name, part)
		}
		at := strings.Index(name, part)
		if at < 0 {
			return false
		}
		name, rest = name[at+len(part):], behind
	}
}
