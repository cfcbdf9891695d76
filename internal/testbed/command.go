package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// Command prepares a command that runs on the host as root, with an
// environment of its own (add to Env as needed) and / as working directory.
// The end of ctx kills it and what it started, except what left its process
// group. As with [exec.Command], a command that is not there shows in Run.
func (h *Host) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return h.command(ctx, people[0], argv)
}

// CommandAs is Command for another account of the host. It panics when there
// is none of that name.
func (h *Host) CommandAs(ctx context.Context, accountName string, argv ...string) *exec.Cmd {
	a, err := lookupAccount(accountName)
	if err != nil {
		panic(err)
	}
	return h.command(ctx, a, argv)
}

func (h *Host) command(ctx context.Context, a account, argv []string) *exec.Cmd {
	nsenter, err := lookPath("nsenter")
	if err != nil {
		nsenter = "nsenter" // Run tells that it is missing
	}
	id := strconv.Itoa(a.id)
	args := []string{"--target", strconv.Itoa(h.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--setgid", id, "--setuid", id, "--"}
	cmd := exec.CommandContext(ctx, nsenter, append(args, argv...)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "SHELL=" + a.shell, "LANG=C.UTF-8", "TERM=dumb",
	}
	if a.id != 0 {
		cmd.Env = append(cmd.Env, "NIX_REMOTE=daemon")
	}
	// nsenter stays outside as the parent; only the group has both.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// What left the group may hold the output open.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// A Result is what a command did.
type Result struct {
	Stdout, Stderr string
	// Status is the exit status; -1 if a signal ended it.
	Status int
}

// Shell runs a script with bash on the host as root. A status other than 0 is
// no error: an error means that the script could not run to its end.
func (h *Host) Shell(ctx context.Context, script string) (Result, error) {
	return runShell(h.Command(ctx, "bash", "-c", script), h, script)
}

// ShellAs is Shell for another account of the host.
func (h *Host) ShellAs(ctx context.Context, accountName, script string) (Result, error) {
	return runShell(h.CommandAs(ctx, accountName, "bash", "-c", script), h, script)
}

func runShell(cmd *exec.Cmd, h *Host, script string) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := h.Run(cmd)
	res := Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && res.Status > 0 {
		return res, nil
	}
	if err != nil {
		return res, fmt.Errorf("run %q on %s: %w\n%s", script, h.spec.Name, err, stderr.Bytes())
	}
	return res, nil
}

// Run runs a command of this host and counts its CPU time for the host.
func (h *Host) Run(cmd *exec.Cmd) error {
	leave, err := h.cgroup.join(cmd.SysProcAttr)
	if err != nil {
		return err
	}
	defer leave()
	return cmd.Run()
}
