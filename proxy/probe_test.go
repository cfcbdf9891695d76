package proxy

import (
	"errors"
	"strings"
	"testing"

	"nixbastion/policy"
)

// Guards against guides and scripts that find no Nix here: the first is the
// literal command of the guide to distributed builds.
func TestProbesAreAnsweredFromATable(t *testing.T) {
	l := newLab(t)
	version := nixVersion + " (nixbastion test)\n"
	for command, want := range map[string]said{
		"type nix-store":             {stdout: "nix-store is answered by nixbastion\n"},
		"type nix-daemon nix":        {stdout: "nix-daemon is answered by nixbastion\nnix is answered by nixbastion\n"},
		"type foo":                   {stderr: "nixbastion: foo: not found\n", status: 1},
		"type nix-store foo":         {stdout: "nix-store is answered by nixbastion\n", stderr: "nixbastion: foo: not found\n", status: 1},
		"type nix-env":               {stderr: "nixbastion: nix-env: not found\n", status: 1},
		"type /bin/sh":               {stderr: "nixbastion: /bin/sh: not found\n", status: 1},
		"command -v nix-store":       {stdout: "nix-store\n"},
		"command -v nix-daemon foo":  {stdout: "nix-daemon\n", status: 1},
		"command -v bash":            {status: 1},
		"which nix":                  {stdout: "nix\n"},
		"which bash":                 {status: 1},
		"true":                       {},
		"echo started":               {stdout: "started\n"},
		"echo hello,  world":         {stdout: "hello, world\n"},
		"echo 'hello,  world'":       {stdout: "hello,  world\n"},
		"echo":                       {stdout: "\n"},
		"nix-store --version":        {stdout: "nix-store (Nix) " + version},
		"nix --version":              {stdout: "nix (Nix) " + version},
		"'type' \"nix-store\"":       {stdout: "nix-store is answered by nixbastion\n"},
		"rm -rf /":                   {stderr: "nixbastion: " + errUnknownCommand.Error() + "\n", status: 127},
		"type nix-store >/dev/null":  {stderr: "nixbastion: " + errUnknownCommand.Error() + "\n", status: 127},
		"nix-store -qR /nix/store/x": {stderr: "nixbastion: " + errNixCommand.Error() + "\n", status: 127},
	} {
		if got := l.run("alice", command, nil); got != want {
			t.Errorf("%s\ngot  %+v\nwant %+v", command, got, want)
		}
	}
}

// Guards against lines that run down the screen of a client with a terminal.
func TestLinesEndForATerminal(t *testing.T) {
	l := newLab(t)
	raw := func(x *Exec) { x.Terminal = true }
	for _, command := range []string{"type nix-store", "help", "rm -rf /", "status"} {
		got := l.run("alice", command, raw)
		for line := range strings.SplitAfterSeq(got.stdout+got.stderr, "\n") {
			if line != "" && !strings.HasSuffix(line, "\r\n") {
				t.Errorf("%s: line %q", command, line)
			}
		}
	}
}

// Guards against attempts that nobody sees, and against a log that the client
// writes.
func TestRefusedCommandsAreLogged(t *testing.T) {
	l := newLab(t)
	if got := l.run("alice", "rm -rf /\n{\"msg\":\"forged\"}\x1b[2J"+strings.Repeat("x", 4000), nil); got.status != 127 || got.stdout != "" {
		t.Errorf("got %+v", got)
	}
	records := l.log.records(t, "command refused")
	if len(records) != 1 || records[0]["principal"] != "alice" || records[0]["remote"] != "192.0.2.7:40000" {
		t.Fatalf("the log has %v", records)
	}
	logged := records[0]["command"].(string)
	if !strings.HasPrefix(logged, `"rm -rf /\n`) || strings.ContainsAny(logged, "\n\x1b") || len(logged) > 500 {
		t.Errorf("the command is logged as %q", logged)
	}
}

// Guards against a key that gets out of the command that its admin set.
func TestAForcedCommandLeavesNoChoice(t *testing.T) {
	l := newLab(t)
	for _, asked := range []string{"status", "true", "nix-store --serve --write", "rm -rf /", ""} {
		got := l.run("alice", asked, func(x *Exec) {
			forced("nix-daemon --stdio")(x)
			reading("not the magic number of a worker")(x)
		})
		if got.status != 1 || strings.Contains(got.stdout, "nixbastion") || !strings.Contains(got.stderr, "magic") {
			t.Errorf("%q: got %+v, want the daemon's complaint", asked, got)
		}
	}
	for _, command := range []string{"rm -rf /", "nix-daemon --stdio; sh", "nix-daemon --stdio --store x"} {
		got := l.run("alice", "nix-daemon --stdio", forced(command))
		if want := (said{stderr: "nixbastion: " + forcedCommand + "\n", status: 127}); got != want {
			t.Errorf("forced to %q: got %+v", command, got)
		}
	}
	if _, err := parseCommand("nix-daemon --stdio --store x", policy.Commands{}); !errors.Is(err, errRemoteStore) {
		t.Errorf("%v", err)
	}
}
