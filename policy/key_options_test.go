package policy

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Guards against options that are read in another way than sshd reads them.
func TestKeyOptionsMeanWhatTheyDoForSSHD(t *testing.T) {
	target := func(host string, port uint16) JumpTarget { return JumpTarget{Host: host, Port: port} }
	for options, want := range map[string]Access{
		"":                                      {},
		"no-pty,no-agent-forwarding":            {},
		"no-X11-forwarding,No-User-RC":          {},
		"restrict":                              {NoJump: true},
		"RESTRICT":                              {NoJump: true},
		"restrict,port-forwarding":              {},
		"port-forwarding,restrict":              {NoJump: true},
		"no-port-forwarding":                    {NoJump: true},
		"no-port-forwarding,port-forwarding":    {},
		"port-forwarding,no-port-forwarding":    {NoJump: true},
		"restrict,no-pty,port-forwarding":       {},
		`command="nix-daemon --stdio"`:          {Command: "nix-daemon --stdio"},
		`COMMAND="/a/b-1.2/nix-store --serve"`:  {Command: "nix-store --serve"},
		`command="nix-store  --serve --write "`: {Command: "nix-store --serve --write"},
		`permitopen="b1:22"`:                    {PermitOpen: []JumpTarget{target("b1", 22)}},
		`permitopen="B1.example.org:*",permitopen="[::1]:22",restrict`: {NoJump: true, PermitOpen: []JumpTarget{
			target("b1.example.org", 0), {Net: netip.MustParsePrefix("::1/128"), Port: 22},
		}},
		`permitopen="none"`:                    {PermitOpen: []JumpTarget{}},
		`permitopen="none",permitopen="b1:22"`: {PermitOpen: []JumpTarget{target("b1", 22)}},
	} {
		d := newDir(t)
		line := authorizedLine("anna")
		if options != "" {
			line = options + " " + line
		}
		got, err := d.certified(t, line).Identify(testKey("anna"), anywhere)
		if err != nil {
			t.Errorf("%s: %v", options, err)
			continue
		}
		if got.Command != want.Command || got.NoJump != want.NoJump || !slices.Equal(got.PermitOpen, want.PermitOpen) ||
			(got.PermitOpen == nil) != (want.PermitOpen == nil) {
			t.Errorf("%s: got %+v, want %+v", options, got, want)
		}
	}
}

// Guards against times of another zone, or with their parts mixed up.
func TestExpiryTimesAreThoseOfSSHD(t *testing.T) {
	zone := time.FixedZone("there", 2*60*60)
	local := time.Local
	time.Local = zone
	defer func() { time.Local = local }()
	for text, want := range map[string]time.Time{
		"20300102":        time.Date(2030, 1, 2, 0, 0, 0, 0, zone),
		"20300102Z":       time.Date(2030, 1, 2, 0, 0, 0, 0, time.UTC),
		"203001022304":    time.Date(2030, 1, 2, 23, 4, 0, 0, zone),
		"203001022304z":   time.Date(2030, 1, 2, 23, 4, 0, 0, time.UTC),
		"20300102230459":  time.Date(2030, 1, 2, 23, 4, 59, 0, zone),
		"20240229000000Z": time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseExpiry(text); err != nil || !got.Equal(want) {
			t.Errorf("%s: got %s, %v; want %s", text, got, err, want)
		}
	}
}

// Guards against an expired line that keeps the whole policy from being loaded:
// then nobody could be locked out any more.
func TestExpiredKeyIsNoMistakeAndOpensNothing(t *testing.T) {
	pol := newDir(t).certified(t, `expiry-time="20200101Z" `+authorizedLine("anna"))
	refusedFor(t, pol, testKey("anna"), "expired on 2020-01-01 00:00:00Z")
}
