package policy

import (
	"strings"
	"testing"
)

// Guards against a pattern that takes more or less than it says.
func TestMatchName(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"hello", "hello", true}, {"hello", "hello-1", false}, {"hello", "Hello", false}, {"", "", true}, {"", "x", false},
		{"*", "", true}, {"*", "x", true}, {"**", "", true}, {"a*", "", false},
		{"chromium-*", "chromium-120", true}, {"chromium-*", "chromium-", true}, {"chromium-*", "chromium", false}, {"chromium-*", "ungoogled-chromium-1", false},
		{"*-test", "vm-test", true}, {"*-test", "vm-test-run", false}, {"*-test*", "vm-test-run", true},
		{"a*a", "a", false}, {"a*a", "aa", true}, {"ab*ba", "aba", false}, {"a*b*c", "abbc", true}, {"a*bc*c", "abc", false}, {"a*bc*c", "abcbcc", true},
		{"g++?", "g++?", true}, {"g++?", "g++x", false}, {"a.c", "abc", false}, {"*ab", "aab", true},
	} {
		if got := MatchName(c.pattern, c.name); got != c.want {
			t.Errorf("%q and %q: got %t", c.pattern, c.name, got)
		}
	}
}

// A pattern matches what the plainest rule says: "*" is nothing, or one letter and
// "*" again.
func FuzzMatchName(f *testing.F) {
	f.Add("a*b*c", "abbc")
	f.Add("**a", "ba")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 300 || len(name) > 300 {
			return
		}
		if got, want := MatchName(pattern, name), matchesPlainly(pattern, name); got != want {
			t.Fatalf("%q and %q: got %t", pattern, name, got)
		}
		if rule := (&BuildLimit{Name: pattern}); rule.covers(&BuildLimit{Name: name}) && pattern != "" && name != "" {
			if text := strings.ReplaceAll(name, "*", "xy"); !MatchName(pattern, text) {
				t.Fatalf("%q covers %q, but not its %q", pattern, name, text)
			}
		}
	})
}

// matchesPlainly says for each end of the name whether the pattern so far matches it.
func matchesPlainly(pattern, name string) bool {
	row := make([]bool, len(name)+1)
	row[0] = true
	for i := range len(pattern) {
		next := make([]bool, len(name)+1)
		next[0] = row[0] && pattern[i] == '*'
		for j := range len(name) {
			if pattern[i] == '*' {
				next[j+1] = row[j+1] || next[j]
			} else {
				next[j+1] = row[j] && pattern[i] == name[j]
			}
		}
		row = next
	}
	return row[len(name)]
}
