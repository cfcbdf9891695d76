package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/testbed"
)

// loginsEvery is the pause between two clients: an upgrade takes some 30 ms.
const loginsEvery = 5 * time.Millisecond

// Guards against upgrades that somebody notices: no client is refused, a session that is
// open goes on, the old process ends by itself with it, and the service manager knows
// at each time which process is the main one, and that it lives.
func TestNobodyNoticesAnUpgrade(t *testing.T) {
	s := newStand(t)
	s.start(nil)
	s.hears("READY=1")
	first := s.onlyOneRuns()
	stop := s.clients(loginsEvery)
	for round := range 2 {
		open := s.open()
		old := s.running()[0]
		s.forget()
		answer, err := s.upgrade()
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Sscanf(answer, "process %d serves now", &pid); err != nil || pid == old {
			t.Fatalf("answer %q: %v", answer, err)
		}
		s.hears(fmt.Sprintf("MAINPID=%d", pid), "READY=1", "WATCHDOG=1")
		if round == 0 && len(s.running()) != 2 {
			t.Errorf("processes %v run, with a session open", s.running())
		}
		if round == 0 {
			s.reloads(pid, 2)
		}
		open.works(s)
		open.client.Close()
		if got := s.onlyOneRuns(); got != pid {
			t.Errorf("process %d is left, not %d", got, pid)
		}
	}
	if n := stop(); n < 5 {
		t.Errorf("only %d clients came", n)
	}
	if !ended(first) {
		t.Error("the first process is there still")
	}
	left, err := os.ReadDir(s.file("state/cache/tmp"))
	if err != nil || len(left) > 4 { // folder and lock of ours, perhaps of one that has just ended
		t.Errorf("in tmp: %v, %v", left, err)
	}
}

// reloads has a process load the policy again, and waits until so many have: the one of
// before an upgrade may have sessions of somebody whom the new policy does not let in.
func (s *stand) reloads(pid, processes int) {
	s.Helper()
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		s.Fatal(err)
	}
	s.loads(processes)
}

// loads waits until the policy was loaded again so many times, by all processes.
func (s *stand) loads(times int) {
	s.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(s.file("log"))
		if n := strings.Count(string(text), `"policy loaded"`); err == nil && n == times {
			return
		} else if time.Now().After(deadline) {
			s.Fatalf("the policy was loaded %d times (%v), not %d", n, err, times)
		}
	}
}

// wantNoneLeft wants the program of a failed upgrade that does not end by itself to be
// gone.
func (s *stand) wantNoneLeft() {
	s.Helper()
	found, err := filepath.Glob(s.file("*.pid"))
	if err != nil || len(found) != 1 {
		s.Fatalf("numbers of processes: %v, %v", found, err)
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		s.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || !ended(pid) {
		s.Errorf("process %d of a failed upgrade is left, %v", pid, err)
	}
}

// Guards against an upgrade that ends in nothing: a program that does not start, or does
// not take this policy, leaves the old process as it was, and the admin reads why.
func TestAFailedUpgradeChangesNothing(t *testing.T) {
	s := newStand(t)
	s.start(nil)
	s.hears("READY=1")
	before := s.onlyOneRuns()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := func(name, text string) string {
		if err := os.WriteFile(s.file(name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return s.file(name)
	}
	for _, c := range []struct{ name, program, policy, want string }{
		{"mistakes in the policy", self, "bogus: 1\n", `config.yaml:6:1: unknown key "bogus"`},
		{"crash", script("crash", "exit 7"), "", "it ended; the log has its reason"},
		{"killed", script("killed", "kill -9 $$"), "", "it ended; the log has its reason"},
		{"no program", s.file("missing"), "", "no such file or directory"},
		{"crash behind the store", script("late", `printf 'open\n' >&5; read -r line <&5; exit 9`), "", "it ended; the log has its reason"},
		{"other words", script("other", `echo $$ >"$0.pid"; printf 'hello\n' >&5; exec sleep 60`), "", `it said "hello"`},
	} {
		s.link(c.program)
		s.writePolicy(c.policy)
		_, err := s.upgrade()
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "the old one, which goes on") && c.name != "no program" {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err := s.ask(); err != nil {
			t.Errorf("%s: a client: %v", c.name, err)
		}
	}
	s.wantNoneLeft()
	s.link(self)
	s.writePolicy("")
	if _, err := s.upgrade(); err != nil {
		t.Errorf("after all that: %v", err)
	}
	if after := s.onlyOneRuns(); after == before {
		t.Error("the same process serves")
	}
}

// Guards against restarts that refuse clients although the service manager has the
// socket: they wait until the next process serves, and a session that is open ends
// what it does before.
func TestARestartRefusesNobody(t *testing.T) {
	activate := testbed.NeedTool(t, "systemd-socket-activate", "systemd")
	s := newStand(t)
	l, err := net.Listen("tcp", s.address) // as a socket unit has it
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	start := func() *exec.Cmd {
		s.forget()
		return s.start([]*os.File{socket}, "/bin/sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"`,
			activate, "-E", "NOTIFY_SOCKET", "-E", "WATCHDOG_USEC")
	}
	stop := s.clients(loginsEvery)
	cmd := start()
	for range 2 {
		s.hears("READY=1")
		open := s.open()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		s.hears("STOPPING=1", "EXTEND_TIMEOUT_USEC=")
		open.works(s)
		open.client.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the program ended with %v", err)
		}
		cmd = start()
	}
	s.hears("READY=1")
	if n := stop(); n < 5 {
		t.Errorf("only %d clients came", n)
	}
}

// Guards against a stop that goes on waiting although the admin has asked twice, and
// against one that does not wait at first.
func TestASecondSignalEndsAtOnce(t *testing.T) {
	s := newStand(t)
	cmd := s.start(nil)
	s.hears("READY=1")
	open := s.open()
	defer open.client.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.hears("STOPPING=1")
	open.works(s)
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		open.asksOn() // it would go on for 24 hours
	}()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	if err := cmd.Wait(); err != nil || !stuck.Stop() {
		t.Errorf("the program ended with %v", err)
	}
	<-asking
}

// Guards against a reload of which Type=notify-reload does not hear, and against one that
// is told as done with a policy that was refused.
func TestReloadIsToldToTheServiceManager(t *testing.T) {
	s := newStand(t)
	cmd := s.start(nil)
	s.hears("READY=1")
	for _, c := range []struct{ policy, status string }{
		{"bogus: 1\n", "STATUS=policy refused, the old one stays: " + s.file("config.yaml") + ":6:1: unknown key"},
		{"", "STATUS=policy loaded"},
	} {
		s.writePolicy(c.policy)
		s.forget()
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		s.hears("RELOADING=1", "MONOTONIC_USEC=", "READY=1", c.status)
		s.forget()
		if err := request(io.Discard, s.file("state/admin.sock"), "POST", "reload"); (err == nil) != (c.policy == "") {
			t.Errorf("the admin's reload with %q: %v", c.policy, err)
		}
		s.hears("RELOADING=1", "MONOTONIC_USEC=", "READY=1", c.status)
	}
}

// upgrading begins an upgrade and returns once the new process has read its policy. It
// waits for goOn then.
func (s *stand) upgrading() (goOn func() error) {
	s.Helper()
	name := s.file("state/ssh_host_ed25519_key.pub") // at which it has a look
	if err := errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600)); err != nil {
		s.Fatal(err)
	}
	upgraded := make(chan error, 1)
	go func() {
		_, err := s.upgrade()
		upgraded <- err
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		held, err := os.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0) // if there is a reader
		if err == nil {
			return func() error { return errors.Join(held.Close(), <-upgraded) }
		} else if time.Now().After(deadline) {
			s.Fatal(err)
		}
	}
}

// Guards against a reload that is acknowledged by the old process in the middle of an
// upgrade and does not reach the new one, which would let in who was taken out.
func TestAReloadDuringAnUpgradeReachesTheNewProcess(t *testing.T) {
	s := newStand(t)
	s.start(nil)
	s.hears("READY=1")
	goOn := s.upgrading()
	policy, err := os.ReadFile(s.file("config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ssh.NewSignerFromKey(privateKey("stranger"))
	if err != nil {
		t.Fatal(err)
	}
	anna, other := ssh.MarshalAuthorizedKey(s.key.PublicKey()), ssh.MarshalAuthorizedKey(stranger.PublicKey())
	if err := os.WriteFile(s.file("config.yaml"), bytes.Replace(policy, bytes.TrimSpace(anna), bytes.TrimSpace(other), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := request(io.Discard, s.file("state/admin.sock"), "POST", "reload"); err != nil {
		t.Fatal(err)
	}
	if err := goOn(); err != nil {
		t.Fatal(err)
	}
	s.loads(2)
	if err := s.ask(); err == nil || !strings.Contains(err.Error(), "log in") {
		t.Errorf("who was taken out is let in: %v", err)
	}
}

// Guards against an upgrade that is ended by a reload of the new process, and against one
// of which the old process does not hear, since it came too early.
func TestAReloadOfTheNewProcessDoesNotEndTheUpgrade(t *testing.T) {
	s := newStand(t)
	s.start(nil)
	s.hears("READY=1")
	old := s.onlyOneRuns()
	open := s.open()
	goOn := s.upgrading()
	next := slices.DeleteFunc(s.running(), func(pid int) bool { return pid == old })
	if len(next) != 1 {
		t.Fatalf("beside %d there is %v", old, next)
	}
	if err := syscall.Kill(next[0], syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := goOn(); err != nil {
		t.Fatal(err)
	}
	s.loads(2)
	s.forget()
	if err := syscall.Kill(old, syscall.SIGHUP); err != nil { // it tells the new one
		t.Fatal(err)
	}
	s.loads(4)
	s.hears("RELOADING=1", "READY=1", "STATUS=policy loaded")
	s.mu.Lock()
	if n := strings.Count(strings.Join(s.told, "\n"), "RELOADING=1"); n != 1 {
		t.Errorf("the service manager was told of %d reloads, of which the main process had one", n)
	}
	s.mu.Unlock()
	open.client.Close()
	if got := s.onlyOneRuns(); got != next[0] {
		t.Errorf("process %d is left, not %d", got, next[0])
	}
}

// Guards against a proxy that ends with whoever reads its log: a pipe to a logger, or
// to the terminal of before an upgrade.
func TestALogThatNobodyReadsEndsNothing(t *testing.T) {
	s := newStand(t)
	s.start(nil, "bash", "-c", `exec "$0" "$@" 2> >(exit)`)
	s.hears("READY=1")
	for range 3 {
		if err := s.ask(); err != nil { // which is logged
			t.Fatal(err)
		}
	}
	if _, err := s.upgrade(); err != nil {
		t.Fatal(err)
	}
	s.onlyOneRuns()
	if err := s.ask(); err != nil {
		t.Error(err)
	}
}

// Guards against an upgrade that takes the admin's socket away before it has succeeded:
// who failed to move it could not even be asked for another upgrade.
func TestTheAdminsSocketMovesWithAnUpgradeThatSucceeds(t *testing.T) {
	s := newStand(t)
	s.start(nil)
	s.hears("READY=1")
	s.writePolicy("admin: {socket: missing/admin.sock}\n")
	if _, err := s.upgrade(); err == nil || !strings.Contains(err.Error(), "listen on the admin's socket") {
		t.Errorf("an upgrade to a socket that cannot be made: %v", err)
	}
	s.writePolicy("admin: {socket: other.sock}\n")
	if _, err := s.upgrade(); err != nil {
		t.Fatalf("another upgrade: %v", err)
	}
	s.onlyOneRuns()
	if err := request(io.Discard, s.file("other.sock"), "GET", "status"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.file("state/admin.sock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of before: %v", err)
	}
}

// Guards against upgrades that fail since the new process wants to listen where the old
// one does: the address in the policy need not be written as the system writes it.
func TestTheSocketForMetricsIsHandedOn(t *testing.T) {
	s := newStand(t)
	_, others, err := net.SplitHostPort(s.address)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ host, more string }{{"localhost", ""}, {"", ", allow_remote: true"}} {
		port := freePort(t)
		if port == others {
			t.Fatal("one port for two")
		}
		s.writePolicy(fmt.Sprintf("metrics: {listen: %q%s}\n", c.host+":"+port, c.more))
		if len(s.running()) == 0 {
			s.start(nil)
			s.hears("READY=1")
		}
		for range 2 { // to an address that is new to it, and with it
			if _, err := s.upgrade(); err != nil {
				t.Fatalf("metrics on %q: %v", c.host, err)
			}
			s.onlyOneRuns()
			answer, err := http.Get("http://127.0.0.1:" + port + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
		}
	}
}

// waiting is a server that has not taken the place yet of the process at the other end.
func waiting(t *testing.T) (s *server, other *lines) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	stops := watchStops()
	t.Cleanup(stops.end)
	return newServer(&predecessor{lines: newLines(ours)}, stops, nil, nil, slog.New(slog.DiscardHandler)), newLines(theirs)
}

// Guards against an upgrade that ends with nobody serving: a signal that came to the new
// process alone, before it serves, is no reason for the old one to end.
func TestWhoIsToEndTakesNobodysPlace(t *testing.T) {
	s, other := waiting(t)
	asked, ask := context.WithCancel(t.Context())
	ask()
	s.stops.asked = asked
	go func() { s.before.failed(s.takePlace()) }()
	if word, rest, err := other.next(); err != nil || word != lineFailed || !strings.Contains(rest, "asked to end") {
		t.Errorf("the other process hears %q %q, %v", word, rest, err)
	}
}

// Guards against a second upgrade that overtakes the first: the new process answers admins
// before the service manager knows it, and so could not tell it of a third.
func TestNoUpgradeBeginsBeforeThisProcessServes(t *testing.T) {
	s, _ := waiting(t)
	if answer, err := s.upgrade(t.Context()); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("answer %q, %v", answer, err)
	}
}

// Guards against a line that comes before the other process knows it, which would end the
// upgrade, and against one that is forgotten or repeated.
func TestWhatIsToldTooEarlyIsToldOnceThePlaceIsTaken(t *testing.T) {
	s, other := waiting(t)
	s.tellNeighbours("test")
	s.tellNeighbours("test")
	go func() {
		s.before.say(lineServing, "")
		s.before.settle()
		s.tellNeighbours(byBefore) // who has it from there
		s.tellNeighbours("test")
		s.before.conn.Close()
	}()
	var heard []string
	other.hear(func(word string) { heard = append(heard, word) })
	if want := []string{lineServing, lineReload, lineReload}; !slices.Equal(heard, want) {
		t.Errorf("the other process hears %q, not %q", heard, want)
	}
}

// Guards against an upgrade in a container that ends with the process which was replaced:
// it takes the new one along, with all that it has.
func TestNoUpgradeWhereTheContainerEndsWithTheOldProcess(t *testing.T) {
	for _, c := range []struct {
		parent int
		first  string
		want   bool
	}{
		{1, "tini", true}, {1, "docker-init", true}, {1, "sh", true}, {1, "systemd", false}, {1, "init", false}, {1, "", false},
		{7, "tini", false}, {7, "systemd", false},
	} {
		if got := endsWithUs(c.parent, c.first); got != c.want {
			t.Errorf("a child of %d, where %q is the first process, ends it: %v", c.parent, c.first, got)
		}
	}
}
