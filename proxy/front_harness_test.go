package proxy

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"nixbastion/policy"
)

// site is a Front with clients around it. In memory, inside a synctest bubble,
// its time is virtual: a wait of minutes costs nothing, and a goroutine that is
// left behind fails the test.
type site struct {
	*testing.T
	front   *Front
	hostKey ssh.PublicKey
	book    *logBook
	roster  *roster
	mem     *memListener // nil on loopback
	addr    string       // on loopback
	served  chan error   // what Serve returned

	mu    sync.Mutex
	ports uint16
}

// inMemory runs a test against a Front in a bubble. Change may be nil.
func inMemory(t *testing.T, change func(*FrontOptions), test func(s *site)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, change)
		s.mem = newMemListener()
		s.start(s.mem)
		test(s)
	})
}

// onLoopback makes a Front with real sockets and real time.
func onLoopback(t *testing.T, change func(*FrontOptions)) *site {
	t.Helper()
	return onSockets(t, change, func(conn *net.TCPConn) net.Conn { return conn })
}

// onSockets makes a Front whose sockets the test prepares.
func onSockets(t *testing.T, change func(*FrontOptions), prepare func(*net.TCPConn) net.Conn) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, change)
	s.addr = l.Addr().String()
	s.start(&preparingListener{l, prepare})
	return s
}

type preparingListener struct {
	net.Listener
	prepare func(*net.TCPConn) net.Conn
}

func (l *preparingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.prepare(conn.(*net.TCPConn)), nil
}

func newSite(t *testing.T, change func(*FrontOptions)) *site {
	t.Helper()
	s := &site{T: t, book: &logBook{}, roster: &roster{grants: map[string]Grant{}}, served: make(chan error, 1), ports: 20000}
	host := testKey("host")
	s.hostKey = host.PublicKey()
	opts := FrontOptions{
		HostKeys: []ssh.Signer{host}, Authorize: s.roster.authorize, Exec: runTestCommand,
		Log: slog.New(slog.NewJSONHandler(s.book, nil)),
		// Tests that fail to log in go on, but for those of penalties.
		Penalties: func() policy.Penalties { return policy.Penalties{Off: true} },
	}
	if change != nil {
		change(&opts)
	}
	front, err := NewFront(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.front = front
	s.roster.add("alice", testKey("alice"))
	s.roster.add("root", testKey("root"))
	return s
}

func (s *site) start(l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() { s.served <- s.front.Serve(ctx, l) }()
	s.Cleanup(func() {
		cancel()
		ended, end := context.WithCancel(context.Background())
		end()
		s.front.Shutdown(ended)
	})
}

func withLimits(limits Limits) func(*FrontOptions) {
	return func(o *FrontOptions) { o.Limits = limits }
}

// roster is who may log in. It can change while the Front runs.
type roster struct {
	mu     sync.Mutex
	grants map[string]Grant
	asked  int
}

var errStranger = errors.New("no principal has this key")

func (r *roster) authorize(key ssh.PublicKey, _ netip.Addr) (Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	grant, ok := r.grants[string(key.Marshal())]
	if !ok {
		return Grant{}, errStranger
	}
	return grant, nil
}

func (r *roster) add(principal string, key ssh.Signer) {
	r.set(Grant{Principal: principal, Data: "data of " + principal}, key)
}

func (r *roster) set(grant Grant, key ssh.Signer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.grants[string(key.PublicKey().Marshal())] = grant
}

func (r *roster) remove(key ssh.Signer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.grants, string(key.PublicKey().Marshal()))
}

// testKey is the same ed25519 key whenever the name is.
func testKey(name string) ssh.Signer {
	seed := sha256.Sum256([]byte(name))
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err)
	}
	return signer
}

func fingerprint(key ssh.Signer) string { return ssh.FingerprintSHA256(key.PublicKey()) }

// logBook keeps what was logged, one JSON record a line.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// records are the log records with a message.
func (b *logBook) records(t testing.TB, msg string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(b.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		if record["msg"] == msg {
			found = append(found, record)
		}
	}
	return found
}

// logged waits until all is quiet and expects exactly one record with a message
// and, of each pair of words, the value of the first to contain the second.
func (s *site) logged(msg string, pairs ...string) map[string]any {
	s.Helper()
	s.settle(func() bool { return len(s.book.records(s, msg)) > 0 })
	records := s.book.records(s, msg)
	if len(records) != 1 {
		s.Fatalf("%d records %q, want one; the log:\n%s", len(records), msg, s.book)
	}
	for i := 0; i < len(pairs); i += 2 {
		if got := fmt.Sprint(records[0][pairs[i]]); !strings.Contains(got, pairs[i+1]) {
			s.Errorf("log record %q has %s=%q, want %q in it", msg, pairs[i], got, pairs[i+1])
		}
	}
	return records[0]
}

// settle waits until nothing moves in a bubble, until ok on loopback.
func (s *site) settle(ok func() bool) {
	s.Helper()
	if s.mem != nil {
		synctest.Wait()
		return
	}
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("nothing after 20 s; the log:\n%s", s.book)
		}
	}
}

// socket opens a connection that has said nothing yet.
func (s *site) socket() net.Conn {
	s.Helper()
	return s.socketFrom("10.1.0.1")
}

// socketFrom comes from an address of the test's choice; on loopback there is none.
func (s *site) socketFrom(ip string) net.Conn {
	s.Helper()
	var conn net.Conn
	var err error
	if s.mem == nil {
		conn, err = net.Dial("tcp", s.addr)
	} else {
		s.mu.Lock()
		s.ports++
		from := netip.AddrPortFrom(netip.MustParseAddr(ip), s.ports)
		s.mu.Unlock()
		conn, err = s.mem.dial(from)
	}
	if err != nil {
		s.Fatalf("dial: %v", err)
	}
	s.Cleanup(func() { conn.Close() })
	return conn
}

// saying is a connection that has said something.
func (s *site) saying(text string) net.Conn {
	s.Helper()
	conn := s.socket()
	if _, err := io.WriteString(conn, text); err != nil {
		s.Fatal(err)
	}
	return conn
}

// config is an ordinary client's.
func (s *site) config(user string, auth ...ssh.AuthMethod) *ssh.ClientConfig {
	return &ssh.ClientConfig{
		User: user, Auth: auth, HostKeyCallback: ssh.FixedHostKey(s.hostKey),
		BannerCallback: func(string) error { return nil },
	}
}

func (s *site) dialConfig(config *ssh.ClientConfig) (*ssh.Client, error) {
	s.Helper()
	return clientOn(s.socket(), config)
}

func clientOn(conn net.Conn, config *ssh.ClientConfig) (*ssh.Client, error) {
	c, channels, requests, err := ssh.NewClientConn(conn, "10.0.0.1:22", config)
	if err != nil {
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}

// dial logs in as an ordinary client with some keys.
func (s *site) dial(user string, keys ...ssh.Signer) (*ssh.Client, error) {
	s.Helper()
	return s.dialConfig(s.config(user, ssh.PublicKeys(keys...)))
}

// login is a dial that must work.
func (s *site) login(user string, keys ...ssh.Signer) *ssh.Client {
	s.Helper()
	client, err := s.dial(user, keys...)
	if err != nil {
		s.Fatalf("login: %v; the log:\n%s", err, s.book)
	}
	s.Cleanup(func() { client.Close() })
	return client
}

// run runs a command to its end.
func (s *site) run(client *ssh.Client, command string) (stdout, stderr string, status int) {
	s.Helper()
	session, err := client.NewSession()
	if err != nil {
		s.Fatalf("session: %v", err)
	}
	defer session.Close()
	var out, errs bytes.Buffer
	session.Stdout, session.Stderr = &out, &errs
	status = exitStatus(s, session.Run(command))
	return out.String(), errs.String(), status
}

// exitStatus is the status that a command ended with, from its error.
func exitStatus(t testing.TB, err error) int {
	t.Helper()
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitStatus()
	}
	t.Fatalf("no exit status: %v", err)
	return -1
}

// works shows that a connection still serves sessions.
func (s *site) works(client *ssh.Client) {
	s.Helper()
	if out, _, status := s.run(client, "say alive"); out != "alive" || status != 0 {
		s.Fatalf("got %q and status %d, want alive and 0", out, status)
	}
}

// channel opens a session channel that has asked for nothing yet.
func (s *site) channel(client *ssh.Client) (ssh.Channel, <-chan *ssh.Request) {
	s.Helper()
	ch, requests, err := client.OpenChannel("session", nil)
	if err != nil {
		s.Fatalf("open session: %v", err)
	}
	return ch, requests
}

// ends waits for the end of a connection and returns after how long it came.
func ends(client *ssh.Client) time.Duration {
	start := time.Now()
	client.Wait()
	return time.Since(start)
}

// closedAfter reads until the other side closes and returns after how long it did.
func closedAfter(conn net.Conn) time.Duration {
	start := time.Now()
	io.Copy(io.Discard, conn)
	return time.Since(start)
}

// about expects a virtual time between want and a second more.
func (s *site) about(what string, got, want time.Duration) {
	s.Helper()
	if got < want || got > want+time.Second {
		s.Errorf("%s after %s, want %s", what, got, want)
	}
}

// runTestCommand is what the Front of a test runs.
func runTestCommand(ctx context.Context, x *Exec) int {
	word, rest, _ := strings.Cut(x.Command, " ")
	switch word {
	case "say":
		io.WriteString(x.Stdout, rest)
	case "whoami":
		fmt.Fprintf(x.Stdout, "%s %s %v", x.Identity.Principal, x.Identity.Fingerprint, x.Identity.Data)
	case "user":
		io.WriteString(x.Stdout, x.Identity.User)
	case "env":
		fmt.Fprintf(x.Stdout, "%d %s", len(x.Env), x.Env[rest])
	case "size":
		fmt.Fprint(x.Stdout, len(x.Command))
	case "cat":
		if _, err := io.Copy(x.Stdout, x.Stdin); err != nil {
			return 1
		}
	case "digest":
		h := sha256.New()
		n, err := io.Copy(h, x.Stdin)
		fmt.Fprintf(x.Stdout, "%d %x %v", n, h.Sum(nil), err)
	case "exit":
		var status int
		fmt.Sscan(rest, &status)
		return status
	case "panic":
		panic(rest)
	case "wait":
		<-ctx.Done()
		return 3
	case "finish": // waits for the front to stop, then ends by itself
		<-x.Stopping
		io.WriteString(x.Stdout, "finished")
	case "pour":
		zeros := make([]byte, 256<<10)
		for {
			if _, err := x.Stdout.Write(zeros); err != nil {
				return 1
			}
		}
	default:
		fmt.Fprintf(x.Stderr, "unknown\n")
		return 127
	}
	return 0
}

// rsaKey is an RSA key of the test.
type rsaKey struct {
	ssh.AlgorithmSigner
	key *rsa.PrivateKey
}

func rsaSigner(t testing.TB, bits int) *rsaKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &rsaKey{signer.(ssh.AlgorithmSigner), key}
}

// holdings are what a Front holds for its clients.
type holdings struct{ waiting, conns, principals, sessions, slots, jumps int }

// held waits until all is quiet in a bubble.
func (s *site) held() holdings {
	s.Helper()
	synctest.Wait()
	f := s.front
	for _, mu := range []*sync.Mutex{&f.mu, &f.room.mu, &f.principals.mu, &f.memory.mu} {
		mu.Lock()
		defer mu.Unlock()
	}
	return holdings{len(f.room.waiting), len(f.conns), len(f.principals.n), int(f.memory.used / sessionCost), len(f.slots), len(f.jumps)}
}
