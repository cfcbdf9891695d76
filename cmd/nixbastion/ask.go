package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"nixbastion/policy"
)

const (
	// defaultAdminSocket is that of the state directory which the unit and the
	// example have.
	defaultAdminSocket = "/var/lib/nixbastion/admin.sock"
	askTimeout         = 30 * time.Second
	// maxRefusal is how much is read of a refusal, in bytes: all mistakes of a policy
	// file fit in.
	maxRefusal = 256 << 10
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
	socket, err := f.socket()
	if err != nil {
		return err
	}
	if f.JSON {
		words = append(words, "--json")
	}
	return request(out, socket, http.MethodGet, question, words...)
}

// askAgain is ask, again and again if so wanted.
func (f askFlags) askAgain(out io.Writer, watch watchFlags, question string, words ...string) error {
	return f.ask(out, question, append(words, watch.Watch.words()...)...)
}

// request puts a question, or has something changed, on a socket and prints the
// answer.
func request(out io.Writer, socket, method, question string, words ...string) error {
	return requestWith(out, socket, method, question, nil, words...)
}

// requestWith is request with a body, which may be nil.
func requestWith(out io.Writer, socket, method, question string, body io.Reader, words ...string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport}
	if !isLong(append([]string{question}, words...)) {
		client.Timeout = askTimeout
	}
	target := url.URL{Scheme: "http", Host: "admin", Path: "/" + question, RawQuery: query(out, words).Encode()}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	asked, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return err
	}
	answer, err := client.Do(asked)
	if err != nil {
		return fmt.Errorf("ask the proxy on %s: %w\nhint: it must run; another socket is --socket PATH, or --config FILE", socket, cause(err))
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
		return errors.New("the answer is cut short; the log of the proxy may say why")
	}
	return err
}

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
		fmt.Fprintf(os.Stderr, "%s\nnixbastion: the policy was refused; the one before it stays in force\n", strings.TrimSpace(string(text)))
		return errMistakes
	}
	sentence := errors.New(strings.TrimSpace(string(text)))
	if answer.StatusCode == http.StatusBadRequest {
		fmt.Fprintln(os.Stderr, "nixbastion:", sentence)
		return errMistakes
	}
	return sentence
}
