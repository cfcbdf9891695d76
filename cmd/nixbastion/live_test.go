package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// A stand is the real program in processes of its own, with a policy, a service manager
// to which it talks, and clients that log in all the time.
type stand struct {
	*testing.T
	dir     string
	program string // a link to the program, so that it can be replaced
	address string
	key     ssh.Signer
	log     *standLog

	notes *net.UnixConn
	mu    sync.Mutex // guards what follows
	told  []string   // by the program, a line each
}

// standLog is what all processes log, and the test's to wait for.
type standLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *standLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *standLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newStand(t *testing.T) *stand {
	t.Helper()
	s := &stand{T: t, dir: t.TempDir(), address: "127.0.0.1:" + freePort(t), log: &standLog{}}
	var err error
	if s.key, err = ssh.NewSignerFromKey(privateKey("client")); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.program = s.file("nixbastion")
	s.link(self)
	s.writePolicy("")
	if s.notes, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.file("notify"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	var hearing sync.WaitGroup
	hearing.Go(s.hear)
	t.Cleanup(func() {
		s.notes.Close()
		hearing.Wait()
		if t.Failed() {
			t.Logf("the programs logged:\n%s", s.log)
		}
	})
	return s
}

func (s *stand) file(name string) string { return filepath.Join(s.dir, name) }

// link makes the program be another one.
func (s *stand) link(to string) {
	s.Helper()
	os.Remove(s.program + ".new")
	if err := errors.Join(os.Symlink(to, s.program+".new"), os.Rename(s.program+".new", s.program)); err != nil {
		s.Fatal(err)
	}
}

func (s *stand) writePolicy(more string) {
	s.Helper()
	text := fmt.Sprintf("listen: [\"%s\"]\nstate_dir: state\ndrain_timeout: 24h\nprincipals:\n  - {name: anna, role: full, keys: [\"%s\"]}\n%s",
		s.address, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.key.PublicKey()))), more)
	if err := os.WriteFile(s.file("config.yaml"), []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
}

// hear takes in what the service manager is told.
func (s *stand) hear() {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.notes.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.told = append(s.told, strings.Split(strings.TrimSpace(string(buf[:n])), "\n")...)
		s.mu.Unlock()
	}
}

// forget drops what was told so far.
func (s *stand) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = nil
}

// hears waits until the service manager was told lines that begin so, in that order.
func (s *stand) hears(want ...string) {
	s.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		left := want
		s.mu.Lock()
		for _, line := range s.told {
			if len(left) > 0 && strings.HasPrefix(line, left[0]) {
				left = left[1:]
			}
		}
		told := strings.Join(s.told, "; ")
		s.mu.Unlock()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("the service manager was never told %q, but %q", left, told)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// start runs a command with these words before the program's own, and open files behind
// the standard ones.
func (s *stand) start(files []*os.File, before ...string) *exec.Cmd {
	s.Helper()
	words := append(before, s.program, "serve", "--config", s.file("config.yaml"))
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+s.file("notify"), "WATCHDOG_USEC=100000")
	cmd.ExtraFiles = files
	out, err := os.OpenFile(s.file("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out // a file: no pipe that a successor would hold
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.endAll(cmd) })
	return cmd
}

// endAll ends the command and whatever took its place.
func (s *stand) endAll(cmd *exec.Cmd) {
	for _, pid := range s.running() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	cmd.Process.Kill()
	cmd.Wait()
	text, _ := os.ReadFile(s.file("log"))
	s.log.Write(text)
	os.Truncate(s.file("log"), 0)
}

// running are the processes that serve this stand's policy.
func (s *stand) running() []int {
	s.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		s.Fatal(err)
	}
	var pids []int
	for _, name := range found {
		text, err := os.ReadFile(name)
		words := strings.Split(string(text), "\x00")
		if err != nil || len(words) < 4 || words[0] != s.program || words[3] != s.file("config.yaml") {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		if !ended(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ended reports whether a process is gone, or waits to be asked how it ended.
func ended(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(text), ") ")
	return err != nil || strings.HasPrefix(after, "Z")
}

// onlyOneRuns waits until all but one process have ended, and returns that.
func (s *stand) onlyOneRuns() int {
	s.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		pids := s.running()
		if len(pids) == 1 {
			return pids[0]
		}
		if time.Now().After(deadline) {
			s.Fatalf("processes %v run", pids)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// upgrade asks for an upgrade as an admin does.
func (s *stand) upgrade() (answer string, err error) {
	var out bytes.Buffer
	err = request(&out, s.file("state/admin.sock"), "POST", "upgrade")
	return out.String(), err
}

// ask logs in and asks for the status.
func (s *stand) ask() error {
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	c, channels, requests, err := ssh.NewClientConn(conn, s.address, &ssh.ClientConfig{
		User: "nix", Auth: []ssh.AuthMethod{ssh.PublicKeys(s.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	out, err := session.Output("status --json")
	if err == nil && !json.Valid(out) {
		err = fmt.Errorf("status is %q", out)
	}
	return err
}

// mostClients is how many ask at once: on a busy machine more would be taken for a flood.
const mostClients = 8

// clients ask at a rate until the function returned is called, which tells how many did.
// None of them may fail.
func (s *stand) clients(every time.Duration) (stop func() int) {
	done := make(chan struct{})
	var asked atomic.Int64
	var all sync.WaitGroup
	room := make(chan struct{}, mostClients)
	all.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			room <- struct{}{}
			all.Go(func() {
				defer func() { <-room }()
				if err := s.ask(); err != nil {
					s.Errorf("a client: %v", err)
				}
				asked.Add(1)
			})
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() int {
		close(done)
		all.Wait()
		return int(asked.Load())
	}
}

// openSession is a session of the serve protocol.
type openSession struct {
	client *ssh.Client
	in     io.WriteCloser
	out    *bufio.Reader
}

// open begins one.
func (s *stand) open() *openSession {
	s.Helper()
	client, err := ssh.Dial("tcp", s.address, &ssh.ClientConfig{
		User: "nix", Auth: []ssh.AuthMethod{ssh.PublicKeys(s.key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		s.Fatal(err)
	}
	session, err := client.NewSession()
	if err != nil {
		s.Fatal(err)
	}
	in, inErr := session.StdinPipe()
	out, outErr := session.StdoutPipe()
	if err := errors.Join(inErr, outErr, session.Start("nix-store --serve --write")); err != nil {
		s.Fatal(err)
	}
	o := &openSession{client, in, bufio.NewReader(out)}
	o.send(s, 0x390c9deb, 2<<8|5)
	if got := o.receive(s, 2); got[0] != 0x5452eecb {
		s.Fatalf("the server greets with %x", got[0])
	}
	return o
}

func (o *openSession) send(s *stand, words ...uint64) {
	s.Helper()
	var text []byte
	for _, w := range words {
		for range 8 {
			text, w = append(text, byte(w)), w>>8
		}
	}
	if _, err := o.in.Write(text); err != nil {
		s.Errorf("write to an open session: %v", err)
	}
}

func (o *openSession) receive(s *stand, n int) []uint64 {
	s.Helper()
	words := make([]uint64, n)
	for i := range words {
		var word [8]byte
		if _, err := io.ReadFull(o.out, word[:]); err != nil {
			s.Errorf("read from an open session: %v", err)
		}
		for k := range word {
			words[i] |= uint64(word[k]) << (8 * k)
		}
	}
	return words
}

// validPaths is the question which of no paths are valid.
var validPaths = []uint64{1, 0, 0, 0}

// asksOn asks again and again, until it gets no answer.
func (o *openSession) asksOn() {
	question := make([]byte, 8*len(validPaths))
	question[0] = byte(validPaths[0])
	for answer := make([]byte, 8); ; {
		if _, err := o.in.Write(question); err != nil {
			return
		}
		if _, err := io.ReadFull(o.out, answer); err != nil {
			return
		}
	}
}

// works asks once.
func (o *openSession) works(s *stand) {
	s.Helper()
	o.send(s, validPaths...)
	if got := o.receive(s, 1); got[0] != 0 {
		s.Errorf("%d of no paths are valid", got[0])
	}
}
