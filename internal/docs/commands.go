package docs

import (
	"regexp"
	"strings"
)

// A Named is a command line of nixbastion that a page names.
type Named struct {
	// Line is where it stands, from 1.
	Line int
	// Words are those behind the name of the program.
	Words []string
}

var (
	span    = regexp.MustCompile("`([^`]+)`")
	program = regexp.MustCompile(`(?:^|[\s;&|'"(=]|bin/)nixbastion((?:[ \t]+[^\s|;&<>()#]+)*)`)
)

// CommandsOfPage returns the command lines of nixbastion that stand in a page's code: in its
// blocks and between backquotes.
func CommandsOfPage(page string) []Named {
	var all []Named
	inside, console := false, false
	number := 0
	for line := range strings.Lines(page) {
		number++
		if info, fence := strings.CutPrefix(strings.TrimSpace(line), "```"); fence {
			inside, console = !inside, strings.HasPrefix(info, "console")
			continue
		}
		if inside || strings.HasPrefix(line, "    ") {
			if !console || strings.HasPrefix(line, "$ ") { // else it is what a command prints
				all = append(all, commandsOf(line, number)...)
			}
			continue
		}
		for _, m := range span.FindAllStringSubmatch(line, -1) {
			all = append(all, commandsOf(m[1], number)...)
		}
	}
	return all
}

// CommandsOfText returns those of a file whose comments name them as plain words. Which
// of them are commands, and not just the program's name, the caller must know.
func CommandsOfText(text string) []Named {
	var all []Named
	number := 0
	for line := range strings.Lines(text) {
		number++
		all = append(all, commandsOf(line, number)...)
	}
	return all
}

func commandsOf(line string, number int) []Named {
	var all []Named
	for _, m := range program.FindAllStringSubmatch(strings.ReplaceAll(line, "`", "'"), -1) {
		words := strings.Fields(m[1])
		for len(words) > 0 && (words[0] == "--" || words[0] == "nixbastion") { // it was an account's name
			words = words[1:]
		}
		if len(words) > 0 {
			all = append(all, Named{Line: number, Words: words})
		}
	}
	return all
}
