package policy

import (
	"regexp"

	"gopkg.in/yaml.v3"
)

// nameGrammar is that of builders, principals and domains. A domain's name is
// also one of a directory.
var nameGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func checkName(name string) error {
	if !nameGrammar.MatchString(name) {
		return refuse("use 1 to 64 letters, digits, '.', '_' or '-', with a letter or digit first", "%s is not a name", quote(name))
	}
	return nil
}

// wordGrammar is that of systems and features: they end up in machines files,
// where commas and spaces separate.
var wordGrammar = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+:/-]{0,127}$`)

func checkWord(word string) error {
	if !wordGrammar.MatchString(word) {
		return refuse("one word per item of the list, without commas or spaces", "%s is not the name of a system or feature", quote(word))
	}
	return nil
}

func checkSystem(system string) error {
	if system == "builtin" {
		return refuse("remove it", "every builder can run builtin derivations; builtin is not one of its systems")
	}
	return checkWord(system)
}

// names are those that were given already, and where.
type names map[string]*yaml.Node

// add notes a name, or that it is taken.
func (seen names) add(d *decoder, what, name string, at *yaml.Node) bool {
	if first := seen[name]; first != nil {
		d.mistake(at, "choose another name", "%s %s stands here for the second time; the first is %s", what, quote(name), d.at(first, at))
		return false
	}
	seen[name] = at
	return true
}
