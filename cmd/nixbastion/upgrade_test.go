package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"nixbastion/internal/testbed"
)

// loginsEvery is the pause between two clients, as in the soak test.
const loginsEvery = 50 * time.Millisecond

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
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(s.file("log"))
		if n := strings.Count(string(text), `"policy loaded"`); err == nil && n == processes {
			return
		} else if time.Now().After(deadline) {
			s.Fatalf("%d processes have loaded the policy (%v)", n, err)
		}
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
		{"crash", script("crash", "exit 7"), "", "exit status 7; the log has its reason"},
		{"killed", script("killed", "kill -9 $$"), "", "signal: killed; the log has its reason"},
		{"no program", s.file("missing"), "", "no such file or directory"},
		{"crash behind the store", script("late", `printf 'open\n' >&5; read -r line <&5; exit 9`), "", "exit status 9"},
		{"other words", script("other", `printf 'hello\n' >&5; exec sleep 60`), "", `it said "hello"`},
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
