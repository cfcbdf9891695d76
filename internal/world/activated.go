package world

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// activatedLoop stands for systemd, which the hosts do not have: systemd-socket-activate
// starts it with the socket, and it starts the program whenever neither that nor a process
// that took its place runs.
const activatedLoop = `while :; do
	/bin/sh -c 'LISTEN_PID=$$ exec ` + Binary + ` serve --config ` + ConfigFile + `'
	while grep -qsa "^` + Binary + `" /proc/[0-9]*/cmdline; do sleep 0.05; done
done`

// activatedPattern finds what would start the program again.
const activatedPattern = "^(systemd-socket-activate|/bin/sh -c while)"

// words are the command by which the program is started.
func (p *Proxy) words() []string {
	if !p.spec.Activated {
		return []string{Binary, "serve", "--config", ConfigFile}
	}
	words := []string{"systemd-socket-activate", "-l", "0.0.0.0:22"}
	for _, line := range p.spec.Env {
		name, _, _ := strings.Cut(line, "=")
		words = append(words, "-E", name)
	}
	return append(words, "/bin/sh", "-c", activatedLoop)
}

// activate connects once, which is what starts a program that waits for its socket.
func (p *Proxy) activate(ctx context.Context) error {
	if !p.spec.Activated {
		return nil
	}
	return p.shell(ctx, "for i in $(seq 200); do bash -c ': </dev/tcp/127.0.0.1/22' 2>/dev/null && exit; sleep 0.05; done; exit 1")
}

// Upgrade starts the program anew, to take the place of the one that runs, and returns
// how long that took by its own words. The old one may still run.
func (p *Proxy) Upgrade(ctx context.Context) (time.Duration, error) {
	pattern := "^" + Binary + " serve"
	before, err := p.host.PIDs(pattern)
	if err != nil {
		return 0, err
	}
	res, err := p.host.Shell(ctx, Binary+" upgrade --config "+ConfigFile)
	if err != nil {
		return 0, err
	}
	if res.Status != 0 {
		return 0, fmt.Errorf("upgrade of proxy %s: status %d: %s", p.host.Name(), res.Status, res.Stderr)
	}
	_, after, _ := strings.Cut(res.Stdout, ", after ")
	text, _, _ := strings.Cut(after, ";")
	took, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("upgrade says %q: %w", res.Stdout, err)
	}
	pids, err := p.host.PIDs(pattern)
	if err != nil {
		return 0, err
	}
	pids = slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(before, pid) })
	if len(pids) != 1 {
		return 0, fmt.Errorf("processes %v of proxy %s are new", pids, p.host.Name())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pids[0]
	return took, nil
}

// Processes is how many processes of the program run.
func (p *Proxy) Processes() (int, error) {
	pids, err := p.host.PIDs("^" + Binary + " serve")
	return len(pids), err
}

// Restart ends an Activated program by SIGTERM and returns once it serves again, and how
// long the new one took until it did, by its own words. No other process of it may run.
func (p *Proxy) Restart(ctx context.Context) (time.Duration, error) {
	mark := p.Mark()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	line, err := p.WaitLine(ctx, mark, Message("serving"))
	if err != nil {
		return 0, err
	}
	if err := p.findProcess(); err != nil {
		return 0, err
	}
	return time.ParseDuration(line.Text("after"))
}
