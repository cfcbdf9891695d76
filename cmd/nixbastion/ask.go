package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy"
)

const (
	// defaultAdminSocket is that of the state directory which the unit and the
	// example have.
	defaultAdminSocket = "/var/lib/nixbastion/admin.sock"
	askTimeout         = 30 * time.Second
	// maxRefusal is how much is read of a refusal, in bytes: all mistakes of a policy
	// file fit in.
	maxRefusal = 256 << 10
	// askPause is between two questions where the first has lost its proxy, and
	// restartPatience for how long it may be away.
	askPause        = time.Second
	restartPatience = time.Minute
)

// watchFlags say that an answer is wanted again and again.
type watchFlags struct {
	Watch watchFlag `help:"Answer again every SECONDS (2 unless given) until interrupted." placeholder:"[SECONDS]" name:"watch"`
}

// askFlags say whom a subcommand asks, and how it wants the answer.
type askFlags struct {
	Config string `help:"The policy file, which names the socket." type:"path" xor:"where"`
	Socket string `help:"The socket of the running proxy (default: /var/lib/nixbastion/admin.sock)." type:"path" xor:"where"`
	JSON   bool   `help:"Answer for programs." name:"json"`
}

// ask puts a question to the running proxy and prints the answer, as it comes.
func (f askFlags) ask(out io.Writer, question string, words ...string) error {
	ctx, stop := untilInterrupted()
	defer stop()
	return f.askUntil(ctx, out, question, words...)
}

func untilInterrupted() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}

func (f askFlags) askUntil(ctx context.Context, out io.Writer, question string, words ...string) error {
	socket, err := f.socket()
	if err != nil {
		return err
	}
	if f.JSON {
		words = append(words, "--json")
	}
	return requestWith(ctx, out, socket, http.MethodGet, question, nil, words...)
}

// askAgain is ask, again and again if so wanted: also of the process that takes the place
// of the one that answered.
func (f askFlags) askAgain(out io.Writer, watch watchFlags, question string, words ...string) error {
	ctx, stop := untilInterrupted()
	defer stop()
	words = append(words, watch.Watch.words()...)
	var lost time.Time // when an answer was cut short last
	for {
		err := f.askUntil(ctx, out, question, words...)
		switch {
		case !watch.Watch.on || ctx.Err() != nil:
			return err
		case errors.Is(err, errCut):
			lost = time.Now()
			fmt.Fprintln(os.Stderr, "nixbastion: the proxy answers no more; asking again")
		case !errors.As(err, new(*unansweredError)) || time.Since(lost) > restartPatience:
			return err
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// request puts a question, or has something changed, on a socket and prints the
// answer.
func request(out io.Writer, socket, method, question string, words ...string) error {
	ctx, stop := untilInterrupted()
	defer stop()
	return requestWith(ctx, out, socket, method, question, nil, words...)
}

var errCut = errors.New("the answer is cut short: the proxy has stopped or failed, or was upgraded; its log says which")

// unansweredError is for a proxy that cannot be asked.
type unansweredError struct {
	socket, hint string
	err          error
}

func (e *unansweredError) Error() string {
	return fmt.Sprintf("ask the proxy on %s: %v\nhint: %s", e.socket, e.err, e.hint)
}

func (e *unansweredError) Unwrap() error { return e.err }

// requestWith is request until ctx ends, which is no error, with a body, which may be nil.
func requestWith(ctx context.Context, out io.Writer, socket, method, question string, body io.Reader, words ...string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	if !isLong(append([]string{question}, words...)) {
		client.Timeout = askTimeout
	}
	target := url.URL{Scheme: "http", Host: "admin", Path: "/" + question, RawQuery: query(out, words).Encode()}
	asked, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return err
	}
	answer, err := client.Do(asked)
	if err != nil {
		return unanswered(socket, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return refused(answer)
	}
	_, err = io.Copy(out, answer.Body)
	switch {
	case ctx.Err() != nil: // whoever asked has enough
		return nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errCut
	}
	return err
}

// unanswered says what to do where nobody answers on a socket.
func unanswered(socket string, err error) error {
	if asked, ok := errors.AsType[*url.Error](err); ok {
		err = asked.Err // its URL says nothing to people
	}
	hint := "it must run; another socket is --socket PATH, or --config FILE"
	switch err = cause(err); {
	case errors.Is(err, fs.ErrPermission):
		hint = "this account may not open the socket: sudo, or see admin.socket and admin.users of the policy"
	case errors.Is(err, context.DeadlineExceeded):
		err, hint = fmt.Errorf("no answer within %s", askTimeout), "its log may say why"
	case errors.Is(err, context.Canceled):
		return errInterrupted
	}
	return &unansweredError{socket, hint, err}
}

// errInterrupted is for whoever had enough before there was an answer.
var errInterrupted = errors.New("interrupted before the proxy answered")

func (f askFlags) socket() (string, error) {
	if f.Config == "" {
		if f.Socket == "" {
			return defaultAdminSocket, nil
		}
		return f.Socket, nil
	}
	socket, err := policy.SocketOf(f.Config)
	if err != nil {
		return "", reportMistakes(err)
	}
	return socket, nil
}

// refused is what the proxy said instead of an answer.
func refused(answer *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxRefusal))
	if err != nil {
		return err
	}
	if answer.StatusCode == statusMistakes {
		fmt.Fprintf(os.Stderr, "%s\nnixbastion: the policy was refused; the one before it stays in force\n", strings.TrimSpace(proxy.Printable(string(text))))
		return errMistakes
	}
	sentence := errors.New(strings.TrimSpace(string(text)))
	if answer.StatusCode == http.StatusBadRequest {
		return mistake(sentence)
	}
	return sentence
}
