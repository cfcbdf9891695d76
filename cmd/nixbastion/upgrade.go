package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

type upgradeCmd struct {
	changeFlags
}

// Run has the running proxy start the program anew, which takes its place.
func (c upgradeCmd) Run(out io.Writer) error {
	socket, err := c.socket()
	if err != nil {
		return err
	}
	return request(out, socket, http.MethodPost, "upgrade")
}

const (
	// successorPatience is how long a new process may take to serve. It is less than
	// an admin's answer may take.
	successorPatience = 15 * time.Second
	// successorEnd is how long it may take to say why it failed.
	successorEnd = 2 * time.Second
)

// programPath is the program as it was started: a new version has that name, be it a
// file that was replaced or a link that was changed.
var programPath, programErr = findProgram(os.Args[0])

func findProgram(name string) (string, error) {
	if !strings.Contains(name, "/") {
		found, err := exec.LookPath(name)
		if err != nil {
			return "", err
		}
		name = found
	}
	return filepath.Abs(name) // the working directory may change
}

// successor is the process that is about to take our place.
type successor struct {
	*lines
	process *os.Process
	ended   chan struct{} // closed when it has ended; status is how
	status  string
}

// startSuccessor runs the program with our arguments and sockets.
func (s *server) startSuccessor() (*successor, error) {
	if programErr != nil {
		return nil, fmt.Errorf("find the program: %w", programErr)
	}
	var sockets handOn
	defer sockets.close()
	for _, d := range s.doors {
		if err := sockets.add(d.name, d.Listener.(syscall.Conn)); err != nil {
			return nil, fmt.Errorf("hand on %s: %w", d.Addr(), err)
		}
	}
	if err := sockets.add(adminName, s.admin.listener); err != nil {
		return nil, fmt.Errorf("hand on the admin's socket: %w", err)
	}
	if s.monitor != nil {
		if err := sockets.add(metricsName, s.monitor.listener); err != nil {
			return nil, fmt.Errorf("hand on the socket of metrics: %w", err)
		}
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer syscall.Close(theirs)
	environment := sockets.environment()
	files := []uintptr{0, 1, 2}
	for _, fd := range sockets.fds {
		files = append(files, uintptr(fd))
	}
	environment = append(environment, handOverVariable+"="+handOverVersion+" "+strconv.Itoa(len(files)))
	files = append(files, uintptr(theirs))
	pid, err := syscall.ForkExec(programPath, append([]string{programPath}, os.Args[1:]...),
		&syscall.ProcAttr{Env: environment, Files: files, Sys: &syscall.SysProcAttr{Cloneflags: cloneFlags()}})
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start %s: %w", programPath, err)
	}
	next := &successor{lines: newLines(ours), ended: make(chan struct{})}
	next.process, _ = os.FindProcess(pid) // which never fails here
	go next.watch()
	return next, nil
}

// cloneFlags makes the new process a child of the service manager, if there is one, and
// not ours: systemd waits for no main process that is another's child when it stops the
// service, and does not see it end otherwise.
func cloneFlags() uintptr {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return 0
	}
	return syscall.CLONE_PARENT
}

// watch sees the process end, also if it is another's child, for which Wait does not wait.
func (n *successor) watch() {
	defer close(n.ended)
	_ = n.process.WithHandle(func(pidfd uintptr) { // an error: it has ended, or Wait alone must do
		poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(poll, -1); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	n.status = "it ended"
	if state, err := n.process.Wait(); err == nil { // of our own alone
		n.status = "it ended with " + state.String()
	}
}

// socketPair returns two ends, one for the other process.
func socketPair() (ours net.Conn, theirs int, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("make a pair of sockets: %w", err)
	}
	file := os.NewFile(uintptr(fds[0]), "successor")
	defer file.Close()
	if ours, err = net.FileConn(file); err != nil {
		syscall.Close(fds[1])
		return nil, 0, err
	}
	return ours, fds[1], nil
}

// upgrade starts the program anew and lets it take our place. After an error all is as
// it was.
func (s *server) upgrade(ctx context.Context) (string, error) {
	if !s.upgrading.TryLock() {
		if s.stops.asked.Err() != nil {
			return "", errors.New("the proxy is about to end")
		}
		return "", errors.New("an upgrade is under way already")
	}
	defer s.upgrading.Unlock()
	if s.isReplaced() {
		return "", errors.New("another process has taken the place of this one already")
	}
	if err := mayBeReplaced(); err != nil {
		return "", err
	}
	began := time.Now()
	next, err := s.startSuccessor()
	if err != nil {
		return "", err
	}
	s.next.Store(next)
	s.log.Info("upgrade begins", "program", programPath, "pid", next.process.Pid)
	version, err := s.handOver(ctx, next)
	if err != nil {
		err = fmt.Errorf("the new process does not take the place of the old one, which goes on: %w", err)
		s.log.Error("upgrade failed", "error", err)
		s.next.Store(nil)
		return "", err
	}
	took := time.Since(began).Round(time.Millisecond)
	s.log.Info("upgraded", "version", version, "pid", next.process.Pid, "took", took.String())
	close(s.replaced)
	next.settle()
	return fmt.Sprintf("process %d serves now, with version %s, after %s; process %d (version %s) ends when its sessions have ended\n",
		next.process.Pid, version, took, os.Getpid(), versionOfUs()), nil
}

// parentAtStart is the process that waits for our end, unless it has ended itself.
var parentAtStart = os.Getppid()

// mayBeReplaced refuses where the end of this process would take the new one along.
func mayBeReplaced() error {
	pid := strconv.Itoa(os.Getpid())
	switch {
	case pid == "1" || endsWithUs(parentAtStart, firstProcess()):
		return errors.New("the container ends with this process, and the new one would with it\nhint: start another container instead")
	case os.Getenv("SYSTEMD_EXEC_PID") == pid && os.Getenv("NOTIFY_SOCKET") == "":
		return errors.New("systemd would stop the new process with this one, as it cannot be told of it\nhint: say Type=notify-reload in the unit, as systemd/nixbastion.service has it, and restart once")
	}
	return nil
}

// endsWithUs reports whether the first process, of that name, ends with this one: so do
// shells and the inits of containers (tini, docker-init, dumb-init), which wait for the
// process that they have started, and for no other.
func endsWithUs(parent int, first string) bool {
	return parent == 1 && first != "" && first != "systemd" && first != "init"
}

// firstProcess is the name of process 1, "" if it is not to be seen.
func firstProcess() string {
	name, err := os.ReadFile("/proc/1/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}

func versionOfUs() string { return version }

// handOver answers the new process until it serves, and ends it if that fails.
func (s *server) handOver(ctx context.Context, next *successor) (version string, err error) {
	deadline := time.Now().Add(successorPatience)
	next.conn.SetDeadline(deadline)
	retired := false
	for err == nil {
		var word, rest string
		word, rest, err = next.next()
		switch {
		case err != nil:
			err = next.whyEnded(err)
		case word == lineFailed:
			err = errors.New(rest)
		case word == lineOpen && !retired:
			err = s.giveStore(ctx, next, deadline)
			retired = err == nil
		case word == lineServing && retired:
			notify(s.log, fmt.Sprintf("MAINPID=%d", next.process.Pid), daemon.SdNotifyReady)
			if err = next.say(lineMain, ""); err == nil {
				next.conn.SetDeadline(time.Time{})
				return rest, nil
			}
			notify(s.log, fmt.Sprintf("MAINPID=%d", os.Getpid()))
		default:
			err = fmt.Errorf("it said %q", word)
		}
	}
	next.end()
	if retired {
		err = errors.Join(err, s.proxy.Resume(ctx))
	}
	return "", err
}

// giveStore lets the new process have the store, or says why not.
func (s *server) giveStore(ctx context.Context, next *successor, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if err := s.proxy.Retire(ctx); err != nil {
		return errors.Join(err, next.say(lineNo, err.Error()))
	}
	if err := next.say(lineYours, ""); err != nil {
		return errors.Join(next.whyEnded(err), s.proxy.Resume(ctx))
	}
	return nil
}

// whyEnded says how the new process ended, if it did.
func (n *successor) whyEnded(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("it did not serve within %s", successorPatience)
	}
	select {
	case <-n.ended:
		return fmt.Errorf("%s; the log has its reason", n.status)
	case <-time.After(successorEnd):
		return err
	}
}

// end kills the new process and waits for its end.
func (n *successor) end() {
	select {
	case <-n.ended:
	case <-time.After(successorEnd):
		_ = n.process.Kill() // it may just have ended
		<-n.ended
	}
	n.conn.Close()
}
