package proxy

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Guards against a build that moves the cursor of whoever reads its log, or sets his
// window's title.
func TestPlainLineOnlyPrints(t *testing.T) {
	for line, want := range map[string]string{
		"":                                "",
		"plain, \ttab":                    "plain, \ttab",
		"über":                            "über",
		"\x1b[1;31mred\x1b[m":             "red",
		"\x1b[?25l\x1b[2K\x1b[1Aup":       "up",
		"\x1b]0;title\x07a":               "a",
		"\x1b]8;;http://x\x1b\\link":      "link",
		"\x1bPq...\x1b\\sixel":            "sixel",
		"\x1b(Bcharset\x1bc":              "charset",
		"\u009b31mc1\u009dtitle\u009c":    "c1",
		"\x9b31mraw":                      "?31mraw",
		"10%\r20%\r":                      "10% 20%",
		"a\x1b":                           "a?",
		"a\x1b[":                          "a",
		"a\x00\x07\x08b":                  "a???b",
		"\u202ebidi\u2066":                "?bidi?",
		"\x1b]never ends, and so is gone": "",
	} {
		if got := plainLine(line); got != want {
			t.Errorf("%q becomes %q, want %q", line, got, want)
		}
	}
}

func FuzzPlainLine(f *testing.F) {
	f.Add("\x1b[31m\x1b]0;a\x07\u009b\xff")
	f.Fuzz(func(t *testing.T, line string) {
		got := plainLine(line)
		bad := strings.IndexFunc(got, func(r rune) bool { return r != '\t' && !unicode.IsPrint(r) })
		if bad >= 0 || !utf8.ValidString(got) {
			t.Errorf("%q becomes %q", line, got)
		}
	})
}
