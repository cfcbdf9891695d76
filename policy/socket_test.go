package policy

import (
	"strings"
	"testing"
)

// Guards against an admin who cannot ask the running proxy what was wrong with a file,
// because the file is wrong.
func TestSocketIsKnownOfAFileWithMistakes(t *testing.T) {
	d := newDir(t)
	for text, want := range map[string]string{
		minimal:                                d.path("lib/admin.sock"),
		minimal + "nonsense: 1\n":              d.path("lib/admin.sock"),
		"admin: {socket: s, what: 1}\n":        "",
		"nonsense: 1\n":                        "",
		"{":                                    "",
		minimal + "admin: {socket: s}\nx: 1\n": d.path("s"),
	} {
		text = strings.Replace(text, "/var/lib/nixbastion", "lib", 1)
		got, err := SocketOf(d.write("policy.yaml", text, 0o644))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}
