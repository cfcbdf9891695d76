package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
	"nixbastion/internal/testbed"
)

// Nix itself unpacks what it fetches, which takes so much longer than to send it
// that a faster server hardly shows. The discarder is a client that throws the
// bytes away: this very program, run on the client's host.
const (
	discarder = "/usr/local/bin/bench"
	discard   = "discard"
)

// discardFiles is how many small files the path of filesDiscarded has, and
// discardFileBytes what each holds.
const (
	discardFiles     = 10_000
	discardFileBytes = 5_000
)

func bigDiscarded() bench {
	return bench{
		name: "discard", share: 60, title: "1 GiB out, discarded",
		what: "as 1 GiB out, but with a client of our own that asks for the NAR and throws it away: what the servers can do",
		slow: true, bytes: bigBytes,
		goals:   []goal{{rate: 1.8}},
		prepare: prepareBigOut,
		warm:    warmDiscard,
		before:  discardCommand,
	}
}

func filesDiscarded() bench {
	return bench{
		name: "files", share: 30, title: "10,000 small files out, discarded",
		what: fmt.Sprintf("the same with one path of %d files of %d bytes", discardFiles, discardFileBytes),
		slow: true, bytes: discardFiles * discardFileBytes,
		goals: []goal{{cpu: 0.25}},
		prepare: func(ctx context.Context, s *stage) error {
			d := testbed.Derivation{Name: s.serial.next(), OutputFiles: discardFiles, OutputSize: discardFileBytes, Random: true}
			return s.buildSubject(ctx, d, nil)
		},
		warm:   warmDiscard,
		before: discardCommand,
	}
}

func warmDiscard(ctx context.Context, s *stage, w *way) error {
	argv, err := discardCommand(ctx, s, w)
	if err != nil {
		return err
	}
	_, err = s.watch(ctx, s.client, w, argv)
	return err
}

func discardCommand(_ context.Context, s *stage, w *way) ([]string, error) {
	return []string{discarder, discard, "-key", s.clientKey().File(), "-user", w.user(), "-host", w.host, s.subject}, nil
}

// runDiscard is the discarder.
func runDiscard(ctx context.Context, args []string) error {
	// It should take as little of the machine as it can, since it shares it with what
	// is measured: goroutines need not wake each other's threads.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(400)
	f := flag.NewFlagSet(discard, flag.ContinueOnError)
	key := f.String("key", "", "file of the private key")
	user := f.String("user", "", "account")
	host := f.String("host", "", "name of the server")
	if err := f.Parse(args); err != nil {
		return err
	}
	path, err := nix.ParseStorePath(f.Arg(0))
	if err != nil {
		return err
	}
	client, err := logIn(*key, *user, *host)
	if err != nil {
		return err
	}
	defer client.Close()
	return discardNAR(ctx, client, path)
}

// systemKnownHosts is where the hosts of a bed know each other's keys.
const systemKnownHosts = "/etc/ssh/ssh_known_hosts"

func logIn(keyFile, user, host string) (*ssh.Client, error) {
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", keyFile, err)
	}
	known, err := knownhosts.New(systemKnownHosts)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(host, "22"))
	if err != nil {
		return nil, err
	}
	// OpenSSH's own choice among what a server offers here, as for the other benches.
	config := &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: known, HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		Config: ssh.Config{Ciphers: []string{"aes128-gcm@openssh.com"}},
	}
	c, channels, requests, err := ssh.NewClientConn(&bulkConn{conn, bufio.NewReaderSize(conn, 64<<10)}, net.JoinHostPort(host, "22"), config)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return ssh.NewClient(c, channels, requests), nil
}

// bulkConn reads much at once; the ssh library would read 4 KiB.
type bulkConn struct {
	net.Conn
	in *bufio.Reader
}

func (c *bulkConn) Read(p []byte) (int, error) { return c.in.Read(p) }

func discardNAR(ctx context.Context, client *ssh.Client, path nix.StorePath) error {
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	defer session.Close()
	in, err := session.StdinPipe()
	if err != nil {
		return err
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return err
	}
	if err := session.Start("nix-daemon --stdio"); err != nil {
		return err
	}
	store, err := worker.NewClient(ctx, pipes{out, in}, worker.ClientOptions{})
	if err != nil {
		return err
	}
	info, err := store.QueryPathInfo(ctx, path)
	if err != nil {
		return err
	}
	archive, err := store.NarFromPath(ctx, path)
	if err != nil {
		return err
	}
	defer archive.Close()
	n, err := io.CopyBuffer(onlyWriter{io.Discard}, archive, make([]byte, 256<<10))
	if err == nil && uint64(n) != info.NarSize {
		err = fmt.Errorf("%d bytes of %d", n, info.NarSize)
	}
	return err
}

// onlyWriter keeps io.CopyBuffer to its buffer.
type onlyWriter struct{ io.Writer }

type pipes struct {
	io.Reader
	io.WriteCloser
}
