package testbed

import (
	"bytes"
	"context"
	_ "embed" // scripts of both stages
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

//go:embed boot.sh
var bootScript string

//go:embed init.sh
var initScript string

//go:embed systemd.sh
var systemdScript string

// hostNamespaces are what a host has of its own.
const hostNamespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// boot starts the host's init, connects it to the switch, and waits until its
// daemons answer.
func (h *Host) boot(ctx context.Context) error {
	lower, err := h.lowerFolders(ctx)
	if err != nil {
		return err
	}
	p, err := h.prepare(lower)
	if err != nil {
		return err
	}
	defer p.close()
	if err := h.launch(p.cmd); err != nil {
		return err
	}
	if err := h.plugIn(ctx); err != nil {
		return err
	}
	if _, err := p.plugged.WriteString("plugged\n"); err != nil {
		return err
	}
	if err := p.awaitReady(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, h.logTails())
	}
	return nil
}

// A launch is a prepared init with this process's ends of its pipes.
type launch struct {
	cmd     *exec.Cmd
	plugged *os.File // to init: the cable is in
	ready   *os.File // from init: daemons answer
	theirs  []*os.File
}

func (h *Host) prepare(lower string) (*launch, error) {
	layer, err := h.makeLayer()
	if err != nil {
		return nil, err
	}
	top := filepath.Join(h.dir, "top")
	if err := os.MkdirAll(top, 0o755); err != nil { // there already after a restart
		return nil, err
	}
	disks, err := h.diskFolders()
	if err != nil {
		return nil, err
	}
	args := append([]string{"-c", bootScript, "boot", lower, layer, top, h.bed.dir}, disks...)
	for _, pair := range h.spec.sortedBinds() {
		args = append(args, "file:"+pair)
	}
	p := &launch{cmd: exec.Command("/bin/sh", args...)}
	if err := p.connect(h); err != nil {
		p.close()
		return nil, err
	}
	p.cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"TESTBED_KIND=" + h.spec.Kind.String(),
		"TESTBED_ADDRESS=" + fmt.Sprintf("%s/%d", h.addr, network.Bits()),
	}
	// The kernel kills init, and with it the whole host, when the thread that
	// started it ends: no crash of this process leaves a host behind.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: hostNamespaces, Pdeathsig: syscall.SIGKILL}
	return p, nil
}

// diskFolders makes the folders of OnDisk and returns arguments for boot.sh.
func (h *Host) diskFolders() ([]string, error) {
	var args []string
	for n, inner := range h.spec.OnDisk {
		outer := filepath.Join(h.dir, fmt.Sprintf("disk%d", n))
		if err := os.MkdirAll(outer, 0o755); err != nil {
			return nil, err
		}
		args = append(args, "disk:"+outer+"="+inner)
	}
	return args, nil
}

// connect lays the descriptors that the scripts know by number.
func (p *launch) connect(h *Host) error {
	goRead, goWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	p.plugged, p.theirs = goWrite, append(p.theirs, goRead)
	readyRead, readyWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	p.ready, p.theirs = readyRead, append(p.theirs, readyWrite)
	for _, name := range []string{"sshd", "nix-daemon", "init"} {
		f, err := os.OpenFile(h.logFile(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, f)
	}
	p.cmd.ExtraFiles = p.theirs[:4] // descriptors 3 to 6
	p.cmd.Stdout, p.cmd.Stderr = p.theirs[4], p.theirs[4]
	return nil
}

func (p *launch) close() {
	for _, f := range append(p.theirs, p.plugged, p.ready) {
		f.Close()
	}
}

// awaitReady waits for init's word, or its end.
func (p *launch) awaitReady(ctx context.Context) error {
	for _, f := range p.theirs {
		f.Close() // so that init's end is the end of the pipe
	}
	stop := context.AfterFunc(ctx, func() { p.ready.Close() })
	defer stop()
	word, err := io.ReadAll(io.LimitReader(p.ready, int64(len("ready\n"))))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if string(word) != "ready\n" {
		return errors.New("init ended before the daemons answered")
	}
	return nil
}

// launch starts init from a thread of its own, which then waits for it, and
// sets h.pid, h.net and h.ended.
func (h *Host) launch(cmd *exec.Cmd) error {
	h.cgroup = h.bed.parent.child(h.spec.Name)
	leave, err := h.cgroup.join(cmd.SysProcAttr)
	if err != nil {
		return err
	}
	defer leave()
	started, ended := make(chan error), make(chan struct{})
	go onOwnThread(func() error {
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() // ends by SIGKILL; there is no status to look at
		}
		return nil
	})
	if err := <-started; err != nil {
		return err
	}
	h.pid, h.ended = cmd.Process.Pid, ended
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid))
	h.net = &netns{ns}
	return err
}

// logTails is what the host's own programs said last, for an error.
func (h *Host) logTails() string {
	var text strings.Builder
	for _, name := range []string{"init", "sshd", "nix-daemon"} {
		log, _ := os.ReadFile(h.logFile(name))
		if log = bytes.TrimSpace(log); len(log) > 0 {
			fmt.Fprintf(&text, "%s of %s:\n%s\n", name, h.spec.Name, log[max(0, len(log)-2000):])
		}
	}
	return text.String()
}
