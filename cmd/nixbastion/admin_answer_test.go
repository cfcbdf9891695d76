package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy"
)

// endless answers without an end, and tells why it ended.
type endless struct{ begun, ended chan error }

func (e *endless) ask(ctx context.Context, out io.Writer, words []string, look proxy.Look) error {
	if !isLong(words) {
		return repeat(ctx, out, words, look)
	}
	e.begun <- nil
	var err error
	for err == nil && ctx.Err() == nil {
		_, err = out.Write(bytes.Repeat([]byte("line\n"), 1000))
	}
	e.ended <- err
	return nil
}

// Guards against readers that do not read, of which some keep the admin from every
// answer, and the proxy from its end.
func TestAnswersThatNobodyReadsHoldUpNobody(t *testing.T) {
	e := &endless{make(chan error), make(chan error, adminLong)}
	o := openOffice(t, "", e.ask)
	for range adminLong {
		conn, err := net.Dial("unix", o.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /log?word=x&word=--follow HTTP/1.1\r\nHost: admin\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-e.begun
	}
	var out bytes.Buffer
	flags := askFlags{Socket: o.socket}
	if err := flags.ask(&out, "status"); err != nil || out.String() != "status\n" {
		t.Errorf("a short question: %q, %v", &out, err)
	}
	if err := flags.ask(&out, "status", "--watch"); err == nil || !strings.Contains(err.Error(), "end one of them") {
		t.Errorf("one more that goes on: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // which a write that nobody reads needs
	defer cancel()
	if err := o.admin.stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop: %v", err)
	}
	o.admin = nil
	for range adminLong {
		<-e.ended
	}
}

// Guards against an admin who watches and keeps the proxy from its end.
func TestAnswersThatGoOnEndWithTheProxy(t *testing.T) {
	o := openOffice(t, "", func(ctx context.Context, out io.Writer, _ []string, _ proxy.Look) error {
		io.WriteString(out, "first\n")
		out.(*answerWriter).Flush()
		<-ctx.Done()
		return nil
	})
	from, to := io.Pipe()
	done := make(chan error)
	go func() { done <- askFlags{Socket: o.socket}.ask(to, "status", "--watch") }()
	if text, err := bufio.NewReader(from).ReadString('\n'); text != "first\n" {
		t.Errorf("%q, %v", text, err)
	}
	o.close()
	if err := <-done; err != nil {
		t.Errorf("the answer ends with %v", err)
	}
}

// Guards against half an answer that looks like a whole one.
func TestABrokenAnswerIsNoAnswer(t *testing.T) {
	o := openOffice(t, "", func(_ context.Context, out io.Writer, _ []string, _ proxy.Look) error {
		io.WriteString(out, strings.Repeat("line\n", 10_000))
		return errors.New("the disk is gone")
	})
	var out, errs bytes.Buffer
	if status := run([]string{"log", "x", "--socket", o.socket}, &out, &errs); status != exitFailure || errs.String() != "nixbastion: "+errCut.Error()+"\n" {
		t.Errorf("status %d, %s", status, &errs)
	}
}

// Guards against a picture that stands still since the proxy was upgraded or started again,
// and nobody says so.
func TestWatchedAnswersGoOnWithTheNextProcess(t *testing.T) {
	var asked atomic.Int32
	live, err := policy.NewLive(writePolicy(t, "state_dir: state\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(live.Current().Admin.Socket), 0o755); err != nil {
		t.Fatal(err)
	}
	start := func() *admin {
		a, err := startAdmin(live, func(ctx context.Context, out io.Writer, _ []string, _ proxy.Look) error {
			n := asked.Add(1)
			if n == 3 {
				return errors.New("the disk is gone")
			}
			fmt.Fprintf(out, "answer %d\n", n)
			out.(*answerWriter).Flush()
			<-ctx.Done()
			return context.Cause(ctx)
		}, nil, nil, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := start()
	from, to := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- askFlags{Socket: live.Current().Admin.Socket}.askAgain(to, watchFlags{watchFlag{on: true}}, "status")
		to.Close()
	}()
	lines := bufio.NewReader(from)
	for _, want := range []string{"answer 1\n", "answer 2\n"} {
		if text, err := lines.ReadString('\n'); text != want {
			t.Fatalf("%q, %v; want %q", text, err, want)
		}
		if err := a.stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		a = start()
	}
	defer a.stop(t.Context())
	if err := <-done; err == nil || err.Error() != "the disk is gone" {
		t.Errorf("the last answer: %v", err)
	}
}

// Guards against options that do not reach the proxy, or reach it as others.
func TestOptionsAreAskedWith(t *testing.T) {
	o := openOffice(t, "", repeat)
	for args, want := range map[string]string{
		"builds": "builds",
		"builds --principal a --builder=b --system s --failed --since 7d --limit 0 --json": "builds --principal=a --builder=b --system=s --since=7d --failed --limit=0 --json",
		"status --watch":            "status --watch",
		"status --watch 5":          "status --watch=5",
		"status --watch=1.5 --json": "status --watch=1.5 --json",
		"queue --watch --json":      "queue --watch --json",
		"who":                       "who",
		"why --watch x86_64-linux":  "why x86_64-linux --watch",
		"log -f k3jx0a":             "log k3jx0a --follow",
		"log k3jx0a":                "log k3jx0a",
	} {
		var out, errs bytes.Buffer
		if status := run(append(strings.Fields(args), "--socket", o.socket), &out, &errs); status != 0 || out.String() != want+"\n" {
			t.Errorf("%s: status %d, %q, %s", args, status, &out, &errs)
		}
	}
}

// Guards against colours in a file, and on the terminal of somebody who wants none.
func TestColoursAreForTerminals(t *testing.T) {
	terminal, err := os.Open(os.DevNull) // as far as its kind goes
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	for _, c := range []struct {
		out            io.Writer
		noColour, term string
		want           string
	}{
		{terminal, "", "xterm", "colour=1&terminal=1"},
		{terminal, "1", "xterm", "terminal=1"},
		{terminal, "", "dumb", "terminal=1"},
		{new(bytes.Buffer), "", "xterm", ""},
	} {
		t.Setenv("NO_COLOR", c.noColour)
		t.Setenv("TERM", c.term)
		if got := query(c.out, nil).Encode(); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// Guards against a kill that nobody has done, or that the wrong one has.
func TestKillSaysWhoDidIt(t *testing.T) {
	noLeaks(t)
	live, err := policy.NewLive(writePolicy(t, "state_dir: state\n"))
	if err != nil {
		t.Fatal(err)
	}
	socket := live.Current().Admin.Socket
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	a, err := startAdmin(live, repeat, func(_ context.Context, by string, words []string) (string, error) {
		return by + ": " + strings.Join(words, " ") + "\n", nil
	}, nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop(t.Context())
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if status := run([]string{"kill", "k3jx0a", "--reason", "too long", "--socket", socket}, &out, &errs); status != 0 || out.String() != me.Username+": kill k3jx0a too long\n" {
		t.Errorf("status %d, %q, %s", status, &out, &errs)
	}
	if got := (peer{uid: 1234567}).name(); got != "account 1234567" {
		t.Errorf("an account without a name is %q", got)
	}
	if answer, err := getAs(os.Geteuid(), socket, http.MethodGet, "/kill?word=x"); err != nil || strings.Contains(answer.text, ": kill") {
		t.Errorf("GET kills: %+v, %v", answer, err)
	}
}

// Guards against hints that send whoever may not ask, or is not answered, the wrong way.
func TestWhoIsNotAnsweredReadsWhatToDo(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.EACCES)}
	for want, err := range map[string]error{
		"ask the proxy on s: permission denied\nhint: this account may not open the socket": &url.Error{Op: "Get", URL: "http://admin/status?", Err: refused},
		"ask the proxy on s: EOF\nhint: it must run":                                        &url.Error{Op: "Get", URL: "http://admin/status?", Err: io.EOF},
		"ask the proxy on s: no answer within 30s\nhint: its log":                           &url.Error{Op: "Get", URL: "http://admin/status?", Err: context.DeadlineExceeded},
		"interrupted before the proxy answered":                                             &url.Error{Op: "Get", URL: "http://admin/status?", Err: context.Canceled},
	} {
		if got := unanswered("s", err); !strings.HasPrefix(got.Error(), want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
