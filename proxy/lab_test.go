package proxy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/internal/metrics"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
	"nixbastion/internal/nix/storetest"
	"nixbastion/internal/nix/worker"
	"nixbastion/policy"
)

// lab is a proxy with builders that obey the test: each is an SSH server on
// loopback with the daemon of a store in memory behind it. Clients speak the
// worker protocol to the proxy's sessions; how they log in is shown elsewhere.
type lab struct {
	testing.TB
	proxy    *Proxy
	builders map[string]*labBuilder
	log      *logBook
	file     string // the policy
}

// labPrincipals are in every lab.
const labPrincipals = `
principals:
  - {name: alice, role: full, keys: [%s], repair_builds: allow}
  - {name: bob, role: full, keys: [%s]}
  - {name: reader, role: read, keys: [%s]}
  - {name: eve, role: full, domain: other, keys: [%s]}
`

// labKey is the key that every lab trusts: that of the suite of all stores.
var labKey = storetest.SigningKey("suite-1")

// labPolicy is what may differ in the policy of a lab. The zero value is newLab's.
type labPolicy struct {
	// domains are items besides those that have no settings.
	domains []string
	// keys are items of trusted_public_keys; nil is labKey.
	keys []string
	// principals are more of them, by the name of their key.
	principals map[string]string
	// extra is more text.
	extra string
}

// newLab starts a proxy with builders, in order of names.
func newLab(t testing.TB, builders ...*labBuilder) *lab {
	t.Helper()
	return newLabOf(t, labPolicy{}, builders...)
}

func newLabOf(t testing.TB, pol labPolicy, builders ...*labBuilder) *lab {
	t.Helper()
	if pol.keys == nil {
		pol.keys = []string{fmt.Sprintf("%q", labKey.Public())}
	}
	if pol.domains == nil {
		pol.domains = []string{"{name: other}"}
	}
	l := &lab{TB: t, builders: map[string]*labBuilder{}, log: &logBook{}}
	dir := t.TempDir()
	identity := filepath.Join(dir, "id")
	l.writeKey(identity, "proxy")
	var text strings.Builder
	fmt.Fprintf(&text, "state_dir: %s\ndomains: [%s]\ntrusted_public_keys: [%s]\n",
		filepath.Join(dir, "state"), strings.Join(pol.domains, ", "), strings.Join(pol.keys, ", "))
	for i, b := range builders {
		if i == 0 {
			text.WriteString("builders:\n")
		}
		l.builders[b.name] = b
		b.start(t)
		fmt.Fprintf(&text, "  - {name: %s, address: \"%s\", user: nix, identity_file: %s, host_keys: [%s], systems: [%s], max_jobs: %d, builder_content: %s, protocol: %s, domains: [%s]%s}\n",
			b.name, b.listener.Addr(), identity, authorizedLine(b.hostKey), b.system(), max(b.maxJobs, 1), b.content(), b.policyProtocol(), b.policyDomain(), b.settings)
	}
	fmt.Fprintf(&text, labPrincipals, authorizedLine(testKey("alice")), authorizedLine(testKey("bob")),
		authorizedLine(testKey("reader")), authorizedLine(testKey("eve")))
	for name, settings := range pol.principals {
		fmt.Fprintf(&text, "  - {name: %s, keys: [%s], %s}\n", name, authorizedLine(testKey(name)), settings)
	}
	l.start(filepath.Join(dir, "config.yaml"), text.String()+pol.extra)
	return l
}

// start runs a proxy with a policy.
func (l *lab) start(file, text string) {
	l.Helper()
	if !strings.Contains(text, "\nscheduling:") {
		text += "\nscheduling: {startup_grace: 0s}\n" // what is down is down
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		l.Fatal(err)
	}
	l.file = file
	live, err := policy.NewLive(file)
	if err != nil {
		l.Fatalf("policy: %v\n%s", err, text)
	}
	l.proxy, err = New(l.Context(), Options{Policy: live, Version: "test", Log: slog.New(slog.NewJSONHandler(l.log, nil)), Metrics: metrics.New("test")})
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := l.proxy.Shutdown(ctx); err != nil {
			l.Errorf("shutdown: %v", err)
		}
	})
}

// writeKey writes the private key that testKey makes of a name.
func (l *lab) writeKey(file, name string) {
	seed := sha256.Sum256([]byte(name))
	block, err := ssh.MarshalPrivateKey(ed25519.NewKeyFromSeed(seed[:]), "")
	if err != nil {
		l.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		l.Fatal(err)
	}
}

func authorizedLine(key ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
}

// labClient is one client's protocol connection.
type labClient struct {
	*worker.Client
	hangUp func()
	// lost says that a client that has gone never meant to.
	lost   atomic.Bool
	served chan error
}

// client opens a session of a principal.
func (l *lab) client(principal string) *labClient {
	l.Helper()
	near, far := net.Pipe()
	return l.clientOn(principal, near, far)
}

// clientOn is client over a connection with two ends.
func (l *lab) clientOn(principal string, near, far net.Conn) *labClient {
	l.Helper()
	ctx, cancel := context.WithCancel(l.Context())
	c := &labClient{hangUp: func() { near.Close() }, served: make(chan error, 1)}
	s := l.proxy.newSession(l.principal(principal), l.proxy.log)
	s.lost = c.lost.Load
	go func() {
		defer far.Close()
		defer s.close()
		c.served <- worker.Serve(ctx, far, s, worker.ServeOptions{DaemonVersion: "test", Trust: trustOf(s.principal.Role)})
	}()
	l.Cleanup(func() {
		cancel()
		near.Close()
		<-c.served
	})
	var err error
	if c.Client, err = worker.NewClient(l.Context(), near, worker.ClientOptions{}); err != nil {
		l.Fatal(err)
	}
	return c
}

func (l *lab) principal(name string) *policy.Principal {
	l.Helper()
	for i, p := range l.proxy.policy.Current().Principals {
		if p.Name == name {
			return &l.proxy.policy.Current().Principals[i]
		}
	}
	l.Fatalf("no principal %q", name)
	return nil
}

// labPath is a store path that differs with its name.
func labPath(name string) nix.StorePath {
	sum := sha256.Sum256([]byte(name))
	path, err := nix.ParseStorePath(nix.StoreDir + "/" + nix.EncodeNix32(sum[:20]) + "-" + name)
	if err != nil {
		panic(err)
	}
	return path
}

// labFile is a path that holds a text.
type labFile struct {
	info *nix.PathInfo
	nar  []byte
}

func newLabFile(path nix.StorePath, text string, refs ...nix.StorePath) labFile {
	var b bytes.Buffer
	if err := nar.WriteRegular(&b, false, uint64(len(text)), strings.NewReader(text)); err != nil {
		panic(err)
	}
	return labFile{nar: b.Bytes(), info: &nix.PathInfo{
		Path: path, References: nix.SortPaths(refs),
		NarHash: nix.HashBytes(nix.SHA256, b.Bytes()), NarSize: uint64(b.Len()),
	}}
}

// upload sends files in order, without a signature check.
func (c *labClient) upload(ctx context.Context, files ...labFile) error {
	return c.uploadWith(ctx, nix.AddOptions{DontCheckSigs: true}, files...)
}

func (c *labClient) uploadWith(ctx context.Context, opts nix.AddOptions, files ...labFile) error {
	rest := files
	return c.AddMultipleToStore(ctx, nix.Discard, nix.PathSource{Count: uint64(len(files)), Next: func() (*nix.PathInfo, io.Reader, error) {
		if len(rest) == 0 {
			return nil, nil, io.EOF
		}
		f := rest[0]
		rest = rest[1:]
		return f.info, bytes.NewReader(f.nar), nil
	}}, opts)
}

// read fetches a path's NAR and checks it against its info.
func (c *labClient) read(ctx context.Context, path nix.StorePath) (string, error) {
	info, err := c.QueryPathInfo(ctx, path)
	if err != nil {
		return "", err
	}
	r, err := c.NarFromPath(ctx, path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	if nix.HashBytes(nix.SHA256, content) != info.NarHash {
		return "", errors.New("the hash is wrong, and the NAR ended well")
	}
	file, err := nar.SingleFile(bytes.NewReader(content))
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(file)
	return string(text), err
}

// labDrv is a derivation with one output and these inputs.
func labDrv(name string, inputs ...nix.StorePath) (nix.StorePath, *nix.BasicDerivation) {
	return labPath(name + ".drv"), &nix.BasicDerivation{
		Outputs:   []nix.DerivationOutput{{Name: "out", Path: labPath(name)}},
		InputSrcs: nix.SortPaths(inputs), Platform: "x86_64-linux", Builder: "/bin/sh",
		Env: []nix.EnvVar{{Name: "name", Value: name}},
	}
}

func (c *labClient) build(ctx context.Context, log nix.Logger, name string, inputs ...nix.StorePath) (*nix.BuildResult, error) {
	return c.buildIn(ctx, nix.BuildNormal, log, name, inputs...)
}

func (c *labClient) buildIn(ctx context.Context, mode nix.BuildMode, log nix.Logger, name string, inputs ...nix.StorePath) (*nix.BuildResult, error) {
	path, drv := labDrv(name, inputs...)
	return c.BuildDerivation(ctx, log, path, drv, mode)
}

// lines collects the text lines of a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Log(m nix.LogMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.WriteString(m.Text + "\n")
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// openDoor has the lab's proxy answer on loopback, until leave or the end of the test.
func (l *lab) openDoor() (addr string, leave func()) {
	l.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.Fatal(err)
	}
	ctx, stop := context.WithCancel(l.Context())
	served := make(chan error, 1)
	go func() { served <- l.proxy.Serve(ctx, []net.Listener{listener}) }()
	leave = sync.OnceFunc(func() {
		stop()
		if err := <-served; err != nil {
			l.Errorf("serve: %v", err)
		}
	})
	l.Cleanup(leave) // runs before the proxy's shutdown
	return listener.Addr().String(), leave
}

// serve is openDoor for those who never leave.
func (l *lab) serve() (addr string) {
	l.Helper()
	addr, _ = l.openDoor()
	return addr
}
