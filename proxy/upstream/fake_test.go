package upstream

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// fakeBuilder is an ssh server in memory whose programs are functions. It counts
// what is asked of it. Its fields are set before it is dialled.
type fakeBuilder struct {
	t          testing.TB
	hostKey    ssh.Signer
	authorized ssh.PublicKey
	// mute accepts connections and never speaks.
	mute bool
	// unreachable is the error of dialling; it may be changed with set.
	unreachable error
	// maxSessions is sshd's MaxSessions; 0 for no limit, -1 for none at all.
	maxSessions int
	// programs answer commands; other commands end with status 127.
	programs map[string]program
	// onRequest answers a request on a running program's channel. Nil refuses all,
	// as sshd does.
	onRequest func(p *fakeProcess, req *ssh.Request)

	mu       sync.Mutex
	dialled  int
	conns    []*memConn // open ones
	commands []string   // in the order of their start
	running  int        // programs
	most     int        // sessions at once on one connection
	done     sync.WaitGroup
}

// program is a remote program; it returns its exit status.
type program func(p *fakeProcess) uint32

// fakeProcess is a running program: its standard input and output.
type fakeProcess struct {
	ssh.Channel
	builder *fakeBuilder
	conn    *memConn
}

// errNoExit as a panic value makes a program end without a report.
var errNoExit = errors.New("no exit status")

const daemonCommand = "nix-daemon --stdio"

func newFakeBuilder(t testing.TB) *fakeBuilder {
	return &fakeBuilder{
		t: t, hostKey: testKey("host"), authorized: testKey("client").PublicKey(),
		programs: map[string]program{daemonCommand: daemonOf(&fakeStore{}, worker.ServeOptions{})},
	}
}

// testKey makes the same key of the same name.
func testKey(name string) ssh.Signer {
	signer, err := ssh.NewSignerFromKey(testPrivateKey(name))
	if err != nil {
		panic(err)
	}
	return signer
}

func testPrivateKey(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func writeKey(t testing.TB, file, name string) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(testPrivateKey(name), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}

// target is how the fake is reached in order.
func (f *fakeBuilder) target() *target {
	file := filepath.Join(f.t.TempDir(), "id")
	writeKey(f.t, file, "client")
	return &target{
		name: "b1", address: "b1.example.org:22", user: "nixremote", identity: &identity{file: file},
		hostKeys: []ssh.PublicKey{f.hostKey.PublicKey()}, maxJobs: 4,
	}
}

func (f *fakeBuilder) dial(context.Context, string, string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialled++
	if f.unreachable != nil {
		return nil, f.unreachable
	}
	client, server := newMemConn()
	f.conns = append(f.conns, server)
	f.done.Go(func() {
		f.serve(server)
		server.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		f.conns = slices.DeleteFunc(f.conns, func(c *memConn) bool { return c == server })
	})
	return client, nil
}

// conn returns the oldest open connection.
func (f *fakeBuilder) conn() *memConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conns[0]
}

func (f *fakeBuilder) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeBuilder) serve(conn *memConn) {
	if f.mute {
		io.Copy(io.Discard, conn)
		return
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if sameKey(key, f.authorized) {
			return nil, nil
		}
		return nil, errors.New("unknown key")
	}}
	config.AddHostKey(f.hostKey)
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	f.done.Go(func() { ssh.DiscardRequests(requests) })
	open := 0
	for ch := range channels {
		f.mu.Lock()
		refuse := f.maxSessions != 0 && open >= f.maxSessions
		if !refuse {
			open++
			f.most = max(f.most, open)
		}
		f.mu.Unlock()
		if refuse {
			ch.Reject(ssh.ConnectionFailed, "open failed")
			continue
		}
		f.done.Go(func() {
			f.session(conn, ch)
			f.mu.Lock()
			defer f.mu.Unlock()
			open--
		})
	}
}

func (f *fakeBuilder) session(conn *memConn, newChannel ssh.NewChannel) {
	ch, requests, err := newChannel.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	for req := range requests {
		if req.Type != "exec" {
			req.Reply(false, nil)
			continue
		}
		req.Reply(true, nil)
		p := &fakeProcess{ch, f, conn}
		f.done.Go(func() { f.answer(p, requests) })
		f.run(p, string(req.Payload[4:]))
		return
	}
}

func (f *fakeBuilder) answer(p *fakeProcess, requests <-chan *ssh.Request) {
	for req := range requests {
		if f.onRequest != nil {
			f.onRequest(p, req)
			continue
		}
		req.Reply(false, nil)
	}
}

func (f *fakeBuilder) run(p *fakeProcess, command string) {
	f.mu.Lock()
	f.commands = append(f.commands, command)
	f.running++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.running--
		f.mu.Unlock()
		if err := recover(); err != nil && err != errNoExit {
			panic(err)
		}
	}()
	run := f.programs[command]
	if run == nil {
		run = func(p *fakeProcess) uint32 {
			fmt.Fprintf(p.Stderr(), "sh: 1: %s: not found\n", command)
			return notFound
		}
	}
	p.exit(run(p))
}

func (p *fakeProcess) exit(status uint32) {
	p.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, status))
}

// daemonOf is a program that serves a store over the worker protocol.
func daemonOf(store nix.Store, opts worker.ServeOptions) program {
	if opts.DaemonVersion == "" {
		opts.DaemonVersion = "2.34.8"
	}
	if opts.Trust == nix.TrustUnknown {
		opts.Trust = nix.Trusted
	}
	return func(p *fakeProcess) uint32 {
		if err := worker.Serve(context.Background(), p, store, opts); err != nil {
			fmt.Fprintf(p.Stderr(), "error: %v\n", err)
			return 1
		}
		return 0
	}
}

// fakeStore is a store with the operations that the tests use.
type fakeStore struct {
	nix.Store
	// build answers BuildDerivation. Nil waits until the client is gone.
	build func(ctx context.Context, log nix.Logger) (*nix.BuildResult, error)

	mu    sync.Mutex
	roots []nix.StorePath
}

func (s *fakeStore) QueryValidPaths(_ context.Context, paths []nix.StorePath, _ bool) ([]nix.StorePath, error) {
	return paths, nil
}

func (s *fakeStore) AddTempRoots(_ context.Context, paths []nix.StorePath) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots = append(s.roots, paths...)
	return nil
}

func (s *fakeStore) NarFromPath(context.Context, nix.StorePath) (io.ReadCloser, error) {
	return nil, nix.ErrNotFound
}

func (s *fakeStore) BuildDerivation(ctx context.Context, log nix.Logger, _ nix.StorePath, _ *nix.BasicDerivation, _ nix.BuildMode) (*nix.BuildResult, error) {
	if s.build != nil {
		return s.build(ctx, log)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}
