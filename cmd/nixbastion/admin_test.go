package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"nixbastion/policy"
	"nixbastion/proxy"
)

// office is an admin's socket with somebody behind it who repeats the question.
type office struct {
	*testing.T
	admin  *admin
	socket string
	log    bytes.Buffer
}

func repeat(_ context.Context, out io.Writer, words []string, _ proxy.Look) error {
	switch words[0] {
	case "odd":
		return &proxy.UsageError{Message: "that makes no sense"}
	case "lost":
		return errors.New("the derivation is not there")
	}
	_, err := io.WriteString(out, strings.Join(words, " ")+"\n")
	return err
}

// openOffice starts it with a policy's admin section.
func openOffice(t *testing.T, section string, ask askFunc) *office {
	t.Helper()
	noLeaks(t)
	live, err := policy.NewLive(writePolicy(t, "state_dir: state\n"+section))
	if err != nil {
		t.Fatal(err)
	}
	o := &office{T: t, socket: live.Current().Admin.Socket}
	if err := os.MkdirAll(filepath.Dir(o.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if o.admin, err = startAdmin(live, ask, nil, nil, nil, slog.New(slog.NewTextHandler(&o.log, nil))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.close)
	return o
}

func (o *office) close() {
	if o.admin == nil {
		return
	}
	if err := o.admin.stop(context.Background()); err != nil {
		o.Errorf("stop: %v", err)
	}
	o.admin = nil
}

// Guards against an answer that is not the running proxy's, and against a socket
// that stays or that others can open.
func TestTheAdminIsAnsweredOnTheSocket(t *testing.T) {
	o := openOffice(t, "", repeat)
	if info, err := os.Stat(o.socket); err != nil || info.Mode() != fsSocket|0o660 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"status"}, "status\n"},
		{[]string{"status", "--json"}, "status --json\n"},
		{[]string{"why", "x86_64-linux", "kvm,a b&word=c"}, "why x86_64-linux kvm,a b&word=c\n"},
		{[]string{"why", "--json", "x86_64-linux"}, "why x86_64-linux --json\n"},
	} {
		var out, errs bytes.Buffer
		if status := run(append(c.args, "--socket", o.socket), &out, &errs); status != 0 || out.String() != c.want {
			t.Errorf("%q: status %d, %q, %s", c.args, status, &out, &errs)
		}
	}
	o.close()
	if _, err := os.Lstat(o.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	var out, errs bytes.Buffer
	if status := run([]string{"status", "--socket", o.socket}, &out, &errs); status != exitFailure || !strings.Contains(errs.String(), "no such file or directory\nhint: ") {
		t.Errorf("status %d, %s", status, &errs)
	}
	if !strings.Contains(o.log.String(), "admin's question asked") || !strings.Contains(o.log.String(), "uid="+fmt.Sprint(os.Geteuid())) {
		t.Errorf("the log is:\n%s", &o.log)
	}
}

const fsSocket = os.ModeSocket

// Guards against refusals that look like answers.
func TestTheAdminReadsWhyThereIsNoAnswer(t *testing.T) {
	o := openOffice(t, "", repeat)
	flags := askFlags{Socket: o.socket}
	var out bytes.Buffer
	if err := flags.ask(&out, "odd"); !errors.Is(err, errMistakes) {
		t.Errorf("a question that makes no sense: %v", err)
	}
	if err := flags.ask(&out, "lost"); err == nil || err.Error() != "the derivation is not there" {
		t.Errorf("a question without an answer: %v", err)
	}
	if out.Len() > 0 {
		t.Errorf("printed %q", &out)
	}
}

// Guards against a socket that answers whoever can reach it. The process at the
// other end is known to the system, and says nothing about itself.
func TestOnlyTheAdminIsAnswered(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("takes root to come as somebody else")
	}
	dir, err := os.MkdirTemp("", "admin") // others can get into it, unlike into t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	o := openOffice(t, fmt.Sprintf("admin: {socket: %s/s, users: [nobody, no-such-account]}\n", dir), repeat)
	if err := os.Chmod(o.socket, 0o666); err != nil { // the check must hold without it
		t.Fatal(err)
	}
	for uid, want := range map[int]int{0: 200, 65534: 200, 1: 403, 1234567: 403} {
		answer, err := getAs(uid, o.socket, http.MethodGet, "/status")
		if err != nil || answer.status != want {
			t.Errorf("account %d: %+v, %v, want %d", uid, answer, err, want)
		}
		if want == 403 && (strings.Count(answer.text, "\n") != 1 || !strings.Contains(answer.text, "admin: {users: [NAME]}")) {
			t.Errorf("account %d reads %q", uid, answer.text)
		}
	}
	for uid, want := range map[int]int{0: 200, 65534: 200, 1: 403} {
		if answer, err := getAs(uid, o.socket, http.MethodPost, "/explain"); err != nil || answer.status != want {
			t.Errorf("account %d asks with a body: %+v, %v, want %d", uid, answer, err, want)
		}
	}
	for _, path := range changes { // whom the policy names may look
		answer, err := getAs(65534, o.socket, http.MethodPost, path+"?word=b1")
		if err != nil || answer.status != http.StatusForbidden || !strings.Contains(answer.text, "only root") {
			t.Errorf("POST %s as one who may look: %+v, %v", path, answer, err)
		}
	}
	if answer, err := getAs(0, o.socket, http.MethodPost, "/status"); err != nil || answer.status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %+v, %v", answer, err)
	}
}

type httpAnswer struct {
	status int
	text   string
}

// getAs asks as another account: that of the thread which connects counts.
func getAs(uid int, socket, method, path string) (httpAnswer, error) {
	conn, err := dialAs(uid, socket)
	if err != nil {
		return httpAnswer{}, err
	}
	defer conn.Close()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	request, err := http.NewRequest(method, "http://admin"+path, nil)
	if err != nil {
		return httpAnswer{}, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return httpAnswer{}, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return httpAnswer{answer.StatusCode, string(text)}, err
}

func dialAs(uid int, socket string) (net.Conn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const keep = ^uintptr(0)
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return nil, errno
	}
	defer syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep)
	return net.Dial("unix", socket)
}

// Guards against a proxy that takes another's socket away, or removes a file that
// is none.
func TestOnlyAStaleSocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	first, err := listenAdmin(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenAdmin(path); !errors.Is(err, errAnswers) {
		t.Errorf("while somebody answers: %v", err)
	}
	first.SetUnlinkOnClose(false) // as if it was killed
	first.Close()
	second, err := listenAdmin(path)
	if err != nil {
		t.Fatalf("a stale socket stays in the way: %v", err)
	}
	second.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenAdmin(path); !errors.Is(err, errNoSocket) {
		t.Errorf("over a file: %v", err)
	}
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	if _, err := listenAdmin(filepath.Join(dir, "none", "s")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
}

// Guards against a start that fails without saying what to do.
func TestASocketThatCannotBeMadeStopsTheStart(t *testing.T) {
	file := writePolicy(t, "state_dir: state\nlisten: [\"127.0.0.1:"+freePort(t)+"\"]\nadmin: {socket: none/s}\n")
	var out, errs bytes.Buffer
	if status := run([]string{"serve", "--config", file}, &out, &errs); status != exitFailure {
		t.Errorf("status %d", status)
	}
	for _, want := range []string{"nixbastion: listen on the admin's socket ", "/none/s: no such file or directory\nhint: make its directory", "admin: {socket: PATH}"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("no %q in:\n%s", want, &errs)
		}
	}
}

// Guards against questions without end or number: each takes a bounded piece of
// memory, and few are answered at once.
func TestTheAdminsQuestionsAreBounded(t *testing.T) {
	o := openOffice(t, "", repeat)
	flags := askFlags{Socket: o.socket}
	var out bytes.Buffer
	if err := flags.ask(&out, "why", strings.Repeat("x", 2*adminHeaderBytes)); err == nil || out.Len() > 0 {
		t.Errorf("a question of %d bytes is answered: %v", 2*adminHeaderBytes, err)
	}
	if err := flags.ask(&out, "why", "x"); err != nil {
		t.Errorf("the next question: %v", err)
	}
}

// Guards against connections without number, and against room that is lost with
// one or found twice.
func TestFewConnectionsAreTakenAtOnce(t *testing.T) {
	noLeaks(t)
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := listenAdmin(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	few := withRoomFor(2, listener)
	var taken []net.Conn
	for range 4 {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	for range 2 {
		conn, err := few.Accept()
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, conn)
	}
	if len(few.room) != 2 {
		t.Fatalf("%d of 2 places are taken", len(few.room))
	}
	accepted := make(chan net.Conn)
	go func() {
		conn, _ := few.Accept()
		accepted <- conn
	}()
	taken[0].Close()
	taken[0].Close()
	third := <-accepted
	if len(few.room) != 2 {
		t.Errorf("%d of 2 places are taken after one left and one came", len(few.room))
	}
	third.Close()
	taken[1].Close()
	if len(few.room) != 0 {
		t.Errorf("%d places are taken by nobody", len(few.room))
	}
}
