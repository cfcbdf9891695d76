package proxy

import (
	"errors"
	"testing"
)

// Guards against running, or mistaking for Nix, anything that is not exactly a
// protocol command.
func TestOnlyProtocolCommandsAreRecognised(t *testing.T) {
	for _, c := range []struct {
		text string
		want command
		err  error
	}{
		{"nix-daemon --stdio", commandDaemon, nil},
		{"/opt/nix/bin/nix-daemon --stdio", commandDaemon, nil},
		{"nix-daemon  --stdio  --process-ops", commandDaemon, nil},
		{"nix-daemon --stdio --store ssh://elsewhere", commandDaemon, errRemoteStore},
		{"nix-daemon --stdio --store=/x", commandDaemon, errRemoteStore},
		{"nix-store --serve --write", commandServe, errServeProtocol},
		{"nix-store --serve", commandServe, errServeProtocol},
		{"nix-daemon", commandUnknown, errUnknownCommand},
		{"", commandUnknown, errUnknownCommand},
		{"nix-daemon --stdio; sh", commandUnknown, errUnknownCommand},
		{"nix-daemon --stdio ;sh", commandDaemon, errUnknownCommand},
		{"nix-daemon --stdio && id", commandDaemon, errUnknownCommand},
		{"nix-daemon --stdio\nid", commandDaemon, errUnknownCommand},
		{"nix-daemon --stdio $(id)", commandDaemon, errUnknownCommand},
		{"nix-daemon\x00 --stdio", commandUnknown, errUnknownCommand},
		{"sh -c 'nix-daemon --stdio'", commandUnknown, errUnknownCommand},
		{"nix-daemon --stdio --force-trusted", commandDaemon, errUnknownCommand},
		{"ⅿix-daemon --stdio", commandUnknown, errUnknownCommand},
		{"nix-store --realise /nix/store/x", commandUnknown, errUnknownCommand},
		{"true", commandUnknown, errUnknownCommand},
		{"rm -rf /", commandUnknown, errUnknownCommand},
	} {
		got, err := parseCommand(c.text)
		if !errors.Is(err, c.err) || (err == nil && got != c.want) {
			t.Errorf("parseCommand(%q) = %v, %v; want %v, %v", c.text, got, err, c.want, c.err)
		}
	}
}
