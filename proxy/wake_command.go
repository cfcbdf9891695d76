package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// maxCommandOutput is how much of what a command prints is kept for the log, the
	// last of it, in bytes.
	maxCommandOutput = 4 << 10
	// commandGrace is how long a command's output is read after its end, while
	// something else has it open.
	commandGrace = 2 * time.Second
)

// runCommand runs a command of the policy, without a shell, and returns the end of
// what it printed. It runs in a process group of its own, which is killed when ctx
// ends, and of which nothing is left in any case.
func runCommand(ctx context.Context, argv, env []string) (output string, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), isForUs), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = commandGrace
	cmd.Cancel = func() error { return killGroup(cmd.Process) }
	var out lastBytes
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if cmd.Process != nil {
		_ = killGroup(cmd.Process) // mostly nobody is left
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, exec.ErrWaitDelay):
		err = nil // it ended well, and left something behind
	}
	return out.String(), err
}

// isForUs says of a line of the environment that it is between the service manager and
// this process: a command that heeds it would speak for the proxy.
func isForUs(line string) bool {
	name, _, _ := strings.Cut(line, "=")
	return slices.Contains([]string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}, name)
}

func killGroup(leader *os.Process) error {
	err := syscall.Kill(-leader.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// lastBytes keeps the last of what is written. The first of it may be missing.
type lastBytes struct{ kept []byte }

func (l *lastBytes) Write(p []byte) (int, error) {
	l.kept = append(l.kept, p[max(0, len(p)-maxCommandOutput):]...)
	if extra := len(l.kept) - maxCommandOutput; extra > 0 {
		l.kept = append(l.kept[:0], l.kept[extra:]...)
	}
	return len(p), nil
}

func (l *lastBytes) String() string {
	return strings.TrimSpace(strings.ToValidUTF8(string(l.kept), "?"))
}

// commandError says for people how a command failed, with the last line that it
// printed.
func commandError(what, output string, err error) error {
	if last := output[strings.LastIndexByte(output, '\n')+1:]; last != "" {
		return fmt.Errorf("%s: %w: %s", what, err, quoted(last))
	}
	return fmt.Errorf("%s: %w", what, err)
}
