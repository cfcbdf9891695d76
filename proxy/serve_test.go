package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/serve"
	"nixbastion/policy"
)

// sshClient is a client of ssh://: a session of the serve protocol with what the
// proxy says beside it.
type sshClient struct {
	*serve.Client
	l      *lab
	near   net.Conn
	stderr syncBuffer
	status chan int
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// ssh asks for a command as a principal and shakes hands.
func (l *lab) ssh(principal, command string, change func(*Exec)) (*sshClient, error) {
	l.Helper()
	near, far := net.Pipe()
	c := &sshClient{l: l, near: near, status: make(chan int, 1)}
	ctx, cancel := context.WithCancel(l.Context())
	x := &Exec{Identity: l.identity(principal), Command: command, Stdin: far, Stdout: far, Stderr: &c.stderr, Stopping: make(chan struct{})}
	if change != nil {
		change(x)
	}
	go func() {
		defer far.Close()
		c.status <- l.proxy.exec(ctx, x)
	}()
	l.Cleanup(func() {
		cancel()
		near.Close()
	})
	var err error
	c.Client, err = serve.NewClient(l.Context(), near, serve.ClientOptions{})
	return c, err
}

// must is an ssh that shakes hands.
func (l *lab) must(principal, command string, change func(*Exec)) *sshClient {
	l.Helper()
	c, err := l.ssh(principal, command, change)
	if err != nil {
		l.Fatalf("handshake: %v; %s", err, &c.stderr)
	}
	return c
}

// ends wants the end of the session with a status and one line on standard error.
func (c *sshClient) ends(status int, line string) {
	c.l.Helper()
	if got := <-c.status; got != status {
		c.l.Errorf("status %d, want %d", got, status)
	}
	if got := c.stderr.String(); got != line {
		c.l.Errorf("stderr is %q, want %q", got, line)
	}
}

func (c *sshClient) upload(files ...labFile) error {
	rest := files
	return c.AddMultipleToStore(c.l.Context(), nix.Discard, nix.PathSource{Count: uint64(len(files)), Next: func() (*nix.PathInfo, io.Reader, error) {
		if len(rest) == 0 {
			return nil, nil, io.EOF
		}
		f := rest[0]
		rest = rest[1:]
		return f.info, bytes.NewReader(f.nar), nil
	}}, nix.AddOptions{DontCheckSigs: true})
}

const serveCommand = "nix-store --serve --write"

// Guards against two kinds of clients that do not meet: what one protocol uploads
// and builds, the other reads, with the same log.
func TestBothProtocolsShareOneStore(t *testing.T) {
	b := newLabBuilder("b1")
	b.build = func(ctx context.Context, b *labBuilder, log nix.Logger, drv *nix.BasicDerivation) (*nix.BuildResult, error) {
		nix.Line(log, "a line of the build")
		return makeOutputs(ctx, b, log, drv)
	}
	l := newLab(t, b)
	input := newLabFile(labPath("input"), "some input")
	c := l.must("alice", serveCommand, nil)
	if err := c.upload(input); err != nil {
		t.Fatal(err)
	}
	path, drv := labDrv("hello", input.info.Path)
	result, err := c.BuildDerivation(t.Context(), nix.Discard, path, drv, nix.BuildNormal)
	if err != nil || !result.Status.Success() {
		t.Fatalf("build: %+v, %v; %s", result, err, &c.stderr)
	}
	for _, want := range []string{"building '" + path.String() + "' on 'b1'", "a line of the build"} {
		if !strings.Contains(c.stderr.String(), want+"\n") {
			t.Errorf("no %q on standard error:\n%s", want, &c.stderr)
		}
	}
	if got, err := l.client("bob").read(t.Context(), labPath("hello")); got != "built by b1" || err != nil {
		t.Errorf("over ssh-ng: %q, %v", got, err)
	}
	reader := l.must("reader", serveCommand, nil)
	for _, want := range []nix.StorePath{labPath("hello"), input.info.Path} {
		if info, err := reader.QueryPathInfo(t.Context(), want); err != nil || info.Path != want {
			t.Errorf("over ssh: %v, %v", info, err)
		}
	}
	if _, err := l.must("eve", serveCommand, nil).QueryPathInfo(t.Context(), labPath("hello")); !errors.Is(err, nix.ErrNotFound) {
		t.Errorf("in another domain: %v", err)
	}
}

// Guards against the protocol that asks for writing with its command alone.
func TestWhoMayNotWriteMayNotOverSSHEither(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	file := newLabFile(labPath("file"), "text")
	drvPath, drv := labDrv("hello")
	const role = `key of "reader" has the role read and may not `
	const who = " here; the admin gives the role in the proxy's policy"
	build := func(c *sshClient) error {
		_, err := c.BuildDerivation(t.Context(), nix.Discard, drvPath, drv, nix.BuildNormal)
		return err
	}
	send := func(c *sshClient) error { return c.upload(file) }
	for _, c := range []struct {
		principal, command string
		change             func(*Exec)
		do                 func(*sshClient) error
		line               string
	}{
		{"reader", serveCommand, nil, send, role + "upload paths" + who},
		{"alice", "nix-store --serve", nil, send, "importing paths is not allowed"},
		{"alice", "nix-store --serve", nil, build, "building paths is not allowed"},
		{"alice", serveCommand, forced("nix-store --serve"), send, "importing paths is not allowed"},
	} {
		s := l.must(c.principal, c.command, c.change)
		if err := c.do(s); err == nil {
			t.Fatalf("%s with %s: allowed", c.principal, c.command)
		}
		s.ends(1, "nixbastion: "+c.line+"\n")
	}
	// A build has a reply for that, and the session goes on.
	result, err := l.must("reader", serveCommand, nil).BuildDerivation(t.Context(), nix.Discard, drvPath, drv, nix.BuildNormal)
	if err != nil || result.Status.Success() || result.ErrorMsg != role+"build"+who {
		t.Errorf("the reader builds: %+v, %v", result, err)
	}
	if got := l.builders["b1"].built(); len(got) != 0 {
		t.Errorf("built %q", got)
	}
}

// Guards against a key that may read and fills the disk all the same: an import is
// read to its end before anybody knows what it is.
func TestAnImportOfAReaderIsNotRead(t *testing.T) {
	l := newLab(t)
	c := l.must("reader", serveCommand, nil)
	if _, err := c.near.Write([]byte{4, 0, 0, 0, 0, 0, 0, 0}); err != nil { // ImportPaths
		t.Fatal(err)
	}
	c.ends(1, "nixbastion: ImportPaths is not supported through this proxy\n")
}

// Guards against a client that builds nothing itself although it should: it goes
// on to another machine only if it is refused before the handshake.
func TestNoBuilderRefusesOverSSHToo(t *testing.T) {
	l := newLab(t, newLabBuilder("b1"))
	l.principal("alice").NoBuilder = policy.NoBuilderRefuse
	l.must("alice", serveCommand, nil)
	l.proxy.router.SetUp("b1", false, "connection refused")
	c, err := l.ssh("alice", serveCommand, nil)
	if err == nil {
		t.Error("the handshake went well")
	}
	c.ends(1, "nixbastion: no builder is up: b1 is down: connection refused\n")
	l.must("bob", serveCommand, nil)
}

// Guards against a session that ends without a word.
func TestNoiseOverSSHIsAnsweredInOneLine(t *testing.T) {
	l := newLab(t)
	got := l.run("alice", serveCommand, reading(strings.Repeat("noise", 10)))
	if got.status != 1 || got.stdout != "" || !strings.HasPrefix(got.stderr, "nixbastion: protocol mismatch: ") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("got %+v", got)
	}
}
