package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A source is an entry of the machine's apt sources.
type source struct {
	uris, suites, components []string
}

// machineMirrors returns where this machine gets Debian from, in the order of
// its apt sources. A mirror of something else may be among them; it falls out
// when its signature is not Debian's.
func machineMirrors() ([]string, error) {
	sources, err := readSources("/etc/apt")
	if err != nil {
		return nil, err
	}
	var mirrors []string
	for _, s := range sources {
		if !s.isMain() {
			continue
		}
		for _, uri := range s.uris {
			if !slices.Contains(mirrors, uri) {
				mirrors = append(mirrors, uri)
			}
		}
	}
	if len(mirrors) == 0 {
		return nil, errors.New("no source of Debian packages in /etc/apt/sources.list or /etc/apt/sources.list.d")
	}
	return mirrors, nil
}

// isMain leaves out the mirrors that have no suites of their own, as those of
// security updates and of most third parties.
func (s source) isMain() bool {
	whole := func(suite string) bool { return !strings.ContainsAny(suite, "/-") }
	return slices.Contains(s.components, "main") && slices.ContainsFunc(s.suites, whole)
}

// readSources reads both formats of apt sources below etc/apt.
func readSources(dir string) ([]source, error) {
	var sources []source
	lists, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*.list"))
	stanzas, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*.sources"))
	for _, file := range append([]string{filepath.Join(dir, "sources.list")}, append(lists, stanzas...)...) {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		if strings.HasSuffix(file, ".sources") {
			sources = append(sources, parseStanzas(string(text))...)
		} else {
			sources = append(sources, parseOneLine(string(text))...)
		}
	}
	return sources, nil
}

// parseOneLine reads "deb [options] URI SUITE COMPONENT...".
func parseOneLine(text string) []source {
	var sources []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		if rest = strings.TrimSpace(rest); strings.HasPrefix(rest, "[") {
			_, rest, _ = strings.Cut(rest, "]")
		}
		if words := strings.Fields(rest); len(words) >= 3 {
			sources = append(sources, source{uris: words[:1], suites: words[1:2], components: words[2:]})
		}
	}
	return sources
}

// parseStanzas reads the deb822 format: fields in stanzas, between empty lines.
func parseStanzas(text string) []source {
	var sources []source
	fields := map[string][]string{}
	flush := func() {
		if slices.Contains(fields["types"], "deb") && !slices.Contains(fields["enabled"], "no") {
			sources = append(sources, source{fields["uris"], fields["suites"], fields["components"]})
		}
		fields = map[string][]string{}
	}
	var field string
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			fields[field] = append(fields[field], strings.Fields(line)...)
		default:
			name, value, _ := strings.Cut(line, ":")
			field = strings.ToLower(name)
			fields[field] = strings.Fields(value)
		}
	}
	flush()
	return sources
}
