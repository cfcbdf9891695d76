package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// Guards against patterns that open more than they show, or less than was meant.
func TestJumpTargetsMeanWhatTheyShow(t *testing.T) {
	prefix := netip.MustParsePrefix
	for text, want := range map[string]JumpTarget{
		"builder1":                {Builder: "builder1"},
		"git.example.org":         {Builder: "git.example.org"}, // whether there is one is looked at later
		"git.example.org:22":      {Host: "git.example.org", Port: 22},
		"Git.Example.ORG.:22":     {Host: "git.example.org", Port: 22},
		"git:*":                   {Host: "git"},
		"*:22":                    {Host: "*", Port: 22},
		"*.example.org:65535":     {Host: "*.example.org", Port: 65535},
		"a.*.example.org:1":       {Host: "a.*.example.org", Port: 1},
		"*.example.org:*":         {Host: "*.example.org"},
		"192.0.2.7:22":            {Net: prefix("192.0.2.7/32"), Port: 22},
		"192.0.2.0/24:22":         {Net: prefix("192.0.2.0/24"), Port: 22},
		"192.0.2.0/24:*":          {Net: prefix("192.0.2.0/24")},
		"0.0.0.0/0:22":            {Net: prefix("0.0.0.0/0"), Port: 22},
		"[2001:db8::1]:22":        {Net: prefix("2001:db8::1/128"), Port: 22},
		"[2001:db8::/32]:22":      {Net: prefix("2001:db8::/32"), Port: 22},
		"x_1-y.4u.example.org:22": {Host: "x_1-y.4u.example.org", Port: 22},
	} {
		got, err := parseJump(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", text, got, err, want)
		}
		if again, err := parseJump(got.String()); err != nil || again != want {
			t.Errorf("%s is written %s, which is %+v, %v", text, got, again, err)
		}
	}
}

// Guards against patterns with two meanings, of which the reader sees the other.
func TestJumpTargetsWithoutOneMeaningAreRefused(t *testing.T) {
	for _, text := range []string{
		"", ":22", "*:*", "*.*:*", "0.0.0.0/0:*", "[::/0]:*", "*", "*.example.org",
		"git:0", "git:65536", "git:65558", "git:022", "git:+22", "git:", "git:ssh", "git: 22", "git:22,23", "git:1-1024",
		"g*t.example.org:22", "**:22", "*git:22", "-git:22", "git-:22", "g..t:22", ".git:22", "git..:22", "g t:22", "git/:22", "gït:22",
		strings.Repeat("a", 64) + ":22", strings.Repeat("a.", 127) + "a:22",
		"2130706433:22", "127.1:22", "0x7f000001:22", "0x7f.1:22", "127.0.0.0x1:22", "017700000001:22", "1.2.3.4.5:22", "*.1:22",
		"192.0.2.1/24:22", "192.0.2.0/33:22", "192.0.2.0/:22", "[::ffff:192.0.2.1]:22", "[::ffff:192.0.2.0/120]:22", "[fe80::1%eth0]:22",
		"2001:db8::1", "2001:db8::1:22", "2001:db8::/32:22", "[2001:db8::1]", "[2001:db8::1]22", "[2001:db8::1", "[git.example.org]:22", "[192.0.2.1]:22",
		"nix@git:22", "ssh://git:22", "!git:22",
	} {
		if got, err := parseJump(text); err == nil {
			t.Errorf("%s: accepted as %+v", text, got)
		} else if hintOf(err) == "" {
			t.Errorf("%s: no hint in %q", text, err)
		}
	}
}
