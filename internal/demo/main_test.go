package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nixbastion/internal/world"
)

// asDemo in the environment makes the test binary the demo itself.
const asDemo = "NIXBASTION_TEST_AS_DEMO"

func TestMain(m *testing.M) {
	if os.Getenv(asDemo) != "" {
		main()
	}
	os.Exit(runTests(m))
}

// runTests makes the program, as tests may run without a make before, and makes
// this process the heir of whatever the demo leaves running.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "nixbastion")
	build := exec.Command("go", "build", "-o", program, "nixbastion/cmd/nixbastion")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the program: %v\n%s", err, out)
		return 1
	}
	os.Setenv("NIXBASTION_BIN", program)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	return m.Run()
}

// A demo is one that runs as a process of its own, as people run it.
type demo struct {
	cmd    *exec.Cmd
	stdout io.Reader
	stderr bytes.Buffer
}

func startDemo(t *testing.T, change func(*exec.Cmd)) *demo {
	t.Helper()
	d := &demo{cmd: exec.CommandContext(t.Context(), "/proc/self/exe")}
	d.cmd.Env = append(os.Environ(), asDemo+"=1")
	d.cmd.Stderr = &d.stderr
	change(d.cmd)
	var err error
	if d.stdout, err = d.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// end waits for the demo, returns what it printed and its status, and fails the
// test if anything of it is left.
func (d *demo) end(t *testing.T) (stdout string, status int) {
	t.Helper()
	buried := d.buryOrphans()
	text, err := io.ReadAll(d.stdout)
	buried()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	left, err := children()
	if err != nil || len(left) > 0 {
		t.Errorf("the demo left the processes %v (%v)", left, err)
	}
	beds := fmt.Sprintf("*bed-%d-*", d.cmd.Process.Pid)
	for _, place := range []string{filepath.Join(cacheDir(), "beds"), "/sys/fs/cgroup"} {
		if found, _ := filepath.Glob(filepath.Join(place, beds)); found != nil {
			t.Errorf("the demo left %v", found)
		}
	}
	return string(text), d.cmd.ProcessState.ExitCode()
}

// buryOrphans waits for the dead among what this process inherits, until stop is
// called, as the first process of a machine does: a namespace is not gone before
// that, and the demo waits for the end of its namespaces. The living are left for end
// to find.
func (d *demo) buryOrphans() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			heirs, _ := children()
			for _, heir := range heirs {
				if pid, err := strconv.Atoi(heir); err == nil && pid != d.cmd.Process.Pid {
					unix.Wait4(pid, nil, unix.WNOHANG, nil)
				}
			}
			select {
			case <-quit:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() { close(quit); <-done }
}

// The demo runs to its end on real hosts, checks its own claims and leaves
// nothing. Guards also against output that no newcomer can read, and against
// one that hides what a user would paste.
func TestDemoRunsAndLeavesNothing(t *testing.T) {
	d := startDemo(t, func(*exec.Cmd) {})
	stdout, status := d.end(t)
	t.Log(stdout)
	if status != 0 || d.stderr.Len() > 0 {
		t.Fatalf("the demo ended with status %d:\n%s", status, d.stderr.String())
	}
	for _, line := range []string{
		`(?m)^ +ssh-ng://proxy aarch64-linux,x86_64-linux \S+ \d+ 1 kvm - \S+$`,
		`(?m)^ +proxy ssh-ed25519 AAAA\S+$`,
		`(?m)^ +extra-trusted-public-keys = demo-1:\S+=$`,
		`bob# nix store verify --recursive --sigs-needed 1 \./result\*\n`,
		`alice# nix store info --store ssh-ng://proxy\n +Store URL: ssh-ng://proxy\n`,
		`alice# nix-build demo.nix -A intel\n`,
		`hello from intel: built on x86-builder, number`,
		`alice# nix-build demo.nix -A arm\n`,
		`hello from arm: built on arm-builder, number`,
		`hello from vm: built on x86-builder, number`,
		`arm-builder: .*kvm`,
		`x86-builder: .*aarch64-linux`,
		`bob# nix-build demo.nix -A intel -A arm -A vm\n`,
	} {
		if !regexp.MustCompile(line).MatchString(stdout) {
			t.Errorf("the demo prints nothing like %q", line)
		}
	}
	for line := range strings.Lines(stdout) {
		// A line to paste has to stay whole.
		if len(line) > 100 && len(linesToPaste(line)) == 0 {
			t.Errorf("the line has %d columns: %s", len(line), line)
		}
	}
}

// Guards against a demo that says that nothing was built again without looking:
// here the outputs are gone everywhere when bob asks for them, so builders work
// again and the numbers are others.
func TestDemoFailsWhenItsClaimIsNotTrue(t *testing.T) {
	var out bytes.Buffer
	err := show(t.Context(), &page{out: &out}, plot{beforeSharing: forgetOutputs})
	if err == nil {
		t.Fatalf("the demo holds good though bob's outputs were built anew:\n%s", out.String())
	}
	for _, want := range []string{"bob did not get what alice had built", "The proxy's log ends with", "serving"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not have %q: %v", want, err)
		}
	}
}

func forgetOutputs(ctx context.Context, s *stage) error {
	if err := s.proxy.Terminate(ctx); err != nil {
		return err
	}
	err := quietly(ctx, s.proxy.Host(), "rm -r "+world.StateDir+"/cache")
	for _, b := range s.builders {
		err = errors.Join(err, quietly(ctx, b, "nix-store --gc"))
	}
	return errors.Join(err, s.proxy.Start(ctx))
}

// Guards against hosts that outlive an impatient user.
func TestInterruptTakesEverythingDown(t *testing.T) {
	d := startDemo(t, func(*exec.Cmd) {})
	begun := bufio.NewReader(d.stdout)
	d.stdout = begun
	for {
		line, err := begun.ReadString('\n')
		if err != nil {
			t.Fatalf("the demo ended too early: %v\n%s", err, d.stderr.String())
		}
		if strings.Contains(line, "alice# nix-build") {
			break
		}
	}
	if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_, status := d.end(t)
	if status != exitInterrupted || !strings.Contains(d.stderr.String(), "Interrupted. Everything was taken down.") {
		t.Errorf("the demo ended with status %d and said\n%s", status, d.stderr.String())
	}
}

// Guards against a demo that hides why its proxy does not run.
func TestFailureShowsTheProxysWords(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "nixbastion")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho the policy is wrong in line 7 >&2\nexit 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := startDemo(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "NIXBASTION_BIN="+broken) })
	_, status := d.end(t)
	if status != exitFailure || !strings.Contains(d.stderr.String(), "the policy is wrong in line 7") {
		t.Errorf("the demo ended with status %d and said\n%s", status, d.stderr.String())
	}
}

// Guards against a screen full of errors where one sentence helps.
func TestWithoutRootItSaysSo(t *testing.T) {
	d := startDemo(t, func(cmd *exec.Cmd) {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	})
	stdout, status := d.end(t)
	if status != exitFailure || stdout != "" || strings.Count(d.stderr.String(), "\n") != 1 || !strings.Contains(d.stderr.String(), "needs root") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, d.stderr.String())
	}
}
