package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nixbastion/internal/testbed"
	"nixbastion/internal/world"
)

// asked is what a person asks of a host before Nix does.
type asked struct {
	command string
	status  int
	// says is a part of the answer on standard output; "" is no answer there.
	says string
}

// The NixOS wiki's second test, and what else people and scripts try, is answered as a
// host with Nix would; all else is refused in one line that the log keeps. Guards
// against guides that end at their first step, and against running anything.
func TestS06ProbesAreAnswered(t *testing.T) {
	g := startGate(t)
	for _, probe := range []asked{
		{"type nix-store", 0, "nix-store"},
		{"type nix-daemon", 0, "nix-daemon"},
		{"command -v nix-store", 0, "nix-store"},
		{"which nix-store", 0, "nix-store"},
		{"command -v nix", 0, "nix"},
		{"true", 0, ""},
		{"echo hello world", 0, "hello world"},
		{"type foo", 1, ""},
		{"which foo", 1, ""},
		{"command -v foo", 1, ""},
	} {
		t.Run(probe.command, func(t *testing.T) { g.testProbe(t, probe) })
	}
	for _, command := range []string{"rm -rf /", "type nix-store; id", "echo $(id)", "cat /etc/passwd", "nix-store --gc"} {
		t.Run(command, func(t *testing.T) { g.testRefusedCommand(t, command) })
	}
	// The line of the NixOS wiki, letter by letter.
	for _, client := range []*testbed.Host{g.client, g.old} {
		line := client.MustShell(t, "ssh -i "+g.reader.File()+" proxy 'type nix-store'")
		wantText(t, "ssh proxy 'type nix-store'", line, "nix-store")
	}
}

// run has OpenSSH run a command line on the proxy.
func (g *gate) run(t *testing.T, command string) testbed.Result {
	t.Helper()
	// Quoted for the client's shell, so that ssh sees one word.
	quoted := "'" + strings.ReplaceAll(command, "'", `'\''`) + "'"
	res, err := g.client.Shell(t.Context(), "exec ssh -i "+g.alice.File()+" proxy "+quoted+" </dev/null")
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (g *gate) testProbe(t *testing.T, probe asked) {
	res := g.run(t, probe.command)
	if res.Status != probe.status || !strings.Contains(res.Stdout, probe.says) || (probe.says == "") != (res.Stdout == "") {
		t.Errorf("status %d, want %d with %q on standard output, have:\n%s%s", res.Status, probe.status, probe.says, res.Stdout, res.Stderr)
	}
}

func (g *gate) testRefusedCommand(t *testing.T, command string) {
	mark := g.proxy.Mark()
	res := g.run(t, command)
	if res.Status != 127 || res.Stdout != "" || strings.Count(res.Stderr, "\n") != 1 {
		t.Errorf("status %d, want 127 and one line of complaint, have:\n%s%s", res.Status, res.Stdout, res.Stderr)
	}
	line := waitLine(t, g.proxy, mark, world.Message("command refused"))
	if got := line.Text("command"); got != fmt.Sprintf("%q", command) || line.Text("principal") != "alice" {
		t.Errorf("the log does not say who wanted %q: %s", command, line.Raw)
	}
}

// Whoever logs in to look around reads what this host is for. Guards against a
// login that hangs, that closes without a word, or that gives a shell.
func TestS08NobodyGetsAShell(t *testing.T) {
	g := startGate(t)
	for _, login := range []struct{ how, command string }{
		{"without a terminal", "ssh -i KEY nixremote@proxy </dev/null"},
		{"with a terminal asked for", "ssh -tt -i KEY nixremote@proxy </dev/null"},
		{"at a terminal", "ssh -i KEY nixremote@proxy"},
		{"at a terminal, as anybody", "ssh -tt -i KEY somebody.else@proxy"},
	} {
		t.Run(login.how, func(t *testing.T) {
			for _, client := range []*testbed.Host{g.client, g.old} {
				said, status := onTerminal(t, client, strings.Replace(login.command, "KEY", g.reader.File(), 1))
				wantText(t, "what the person reads", said, "nixbastion", "no shell")
				if status != 1 {
					t.Errorf("%s on %s ended with status %d, want 1", login.command, client.Name(), status)
				}
			}
		})
	}
	// Nobody else is let in for asking politely.
	said, status := onTerminal(t, g.client, "ssh -i "+g.stranger.File()+" nixremote@proxy")
	if status != 255 || !strings.Contains(said, "Permission denied") {
		t.Errorf("a stranger's login ended with status %d:\n%s", status, said)
	}
}

// onTerminal runs a command line on a host whose input, output and complaints are
// a terminal, and returns what a person would see.
func onTerminal(t *testing.T, host *testbed.Host, command string) (said string, status int) {
	t.Helper()
	screen, terminal := openTerminal(t)
	defer screen.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := host.Command(ctx, "bash", "-c", "exec "+command)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	shown := make(chan string)
	go func() {
		text, _ := io.ReadAll(screen) // ends with EIO when nobody has the terminal any more
		shown <- string(text)
	}()
	err := host.Run(cmd)
	terminal.Close()
	said = <-shown
	if ctx.Err() != nil {
		t.Fatalf("%s on %s does not end: %v\n%s", command, host.Name(), err, said)
	}
	return said, cmd.ProcessState.ExitCode()
}

// openTerminal makes a pseudo-terminal: what is written to one end is read from
// the other.
func openTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	screen = os.NewFile(uintptr(fd), "ptmx")
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	peer, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		err = errors.Join(err, errno)
	}
	if err != nil {
		t.Fatalf("make a terminal: %v", err)
	}
	return screen, os.NewFile(peer, "terminal")
}
