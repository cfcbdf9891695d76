package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	shell "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"

	"nixbastion/internal/metrics"
	"nixbastion/policy"
)

// The SSH front, from the accepted socket to the exec request:
//
//	front.go            listener, shutdown, and the one use of gliderlabs/ssh
//	front_accept.go     one accepted socket: whether there is room, and how it ends
//	front_header.go     where a load balancer says that its client is
//	front_backlog.go    those who waited for the front to begin
//	front_admission.go  who may wait for its login while many do
//	front_penalty.go    who may not come, as it failed to log in
//	front_drain.go      the end of a front that lets clients end first
//	front_ident.go      the client's identification line, read before the key exchange
//	ciphers.go          which algorithms that client is offered
//	front_auth.go       public keys, and the one line about a refused login
//	front_session.go    session channels: env, exec, exit status
//	front_gate.go       the order of what ends a session
//	front_review.go     who may stay when the policy has changed
//	front_who.go        what the admin sees of connections
//	front_stream.go     writes that must make progress
//	front_memory.go     what sessions take, and what they have not read
//	front_conn.go       the socket: grace, acknowledgements, read buffer
//	bastion*.go         channels to other hosts
//	keepalive.go        peers that are gone
//	limits.go           every number
//	hostkey.go          who we are
//	hostcert.go         and who says so
//
// gliderlabs/ssh is a shell around x/crypto/ssh here: it hands over a connection
// and calls back. None of its own handlers for keys, sessions or forwarding is
// used: v0.3.8 lets a client log in as another user, lets everybody in when only
// ServerConfigCallback has a key callback, and panics on a crafted pty request.

// serverIdent is our identification line, without line end (RFC 4253, 4.2).
const serverIdent = "SSH-2.0-nixbastion"

// Grant is what a public key is worth.
type Grant struct {
	// Principal names the owner of the key; connections are counted by it.
	Principal string
	// MaxConnections of this principal at one time; 0 or less means
	// [Limits.ConnectionsPerPrincipal].
	MaxConnections int
	// ConnectionsPerMinute is how many connections the principal may begin; 0 or less
	// means 6,000.
	ConnectionsPerMinute int
	// Certificate tells in the log which certificate was shown, "" for plain keys.
	Certificate string
	// Data is the caller's own; the front hands it through to [Exec].
	Data any
}

// Identity is who is at the other end, known from the key whose signature was
// verified, and from nothing else.
type Identity struct {
	Grant
	// Fingerprint of the key, as ssh-keygen -l prints it (SHA256:...).
	Fingerprint string
	// User is the login name the client chose. It proves nothing; at most 256 bytes.
	User string
	// Remote is where the connection comes from.
	Remote netip.AddrPort
	// ClientVersion is the client's identification line; at most 253 bytes.
	ClientVersion string
}

// Exec is one command that a client wants run.
type Exec struct {
	Identity *Identity
	// Command as the client sent it, unparsed; at most [Limits.CommandBytes].
	Command string
	// Env are the variables the client sent before; names of [A-Za-z0-9_] only.
	Env map[string]string
	// Terminal says that the client asked for a terminal. It has none, but its own
	// is in raw mode: lines for people end with "\r\n" then.
	Terminal bool
	// Stdin ends with io.EOF when the client closes its side; that alone does
	// not end the context of the command.
	Stdin io.Reader
	// Stdout and Stderr block while the client does not read. A write without
	// progress for [Limits.WriteStall] closes the connection.
	Stdout, Stderr io.Writer
	// Stopping is closed when the front begins to shut down, or the connection was
	// dismissed: finish what runs, begin nothing new.
	Stopping <-chan struct{}
	// Dismissed returns why the connection is being ended because of the policy, nil if
	// it is not. Nil says that none ever is.
	Dismissed func() error
	// Working counts what a dismissal with [Dismissal.Finish] waits for. May be nil.
	Working *atomic.Int64
	// Draining is closed when the front begins to drain: all goes on, and who asks
	// for nothing for DrainIdle, which is known then, is ended.
	Draining  <-chan struct{}
	DrainIdle func() time.Duration
	// Lost reports, once Stdin or the context has ended, whether that is since the
	// client was lost: it fell silent, or its connection was reset. One that closes
	// its connection, or is killed, is not. Nil says that nobody is ever lost.
	Lost func() bool
	// Operates notes, for the admin, what the command does now; "" for nothing. Nil is
	// for nobody.
	Operates func(operation string)
}

// FrontOptions are what a Front needs.
type FrontOptions struct {
	// HostKeys, at least one.
	HostKeys []ssh.Signer
	// HostCertificate is asked at each connection for a certificate of one of the
	// HostKeys, which is offered besides the plain key. Nil is none, as is a nil
	// certificate.
	HostCertificate func() *ssh.Certificate
	// Authorize says what a key or certificate is worth now. It is asked at each
	// login, once the client has proved that it has the key, and again for each
	// session. For a certificate it must verify who signed it. Its error is logged
	// and never shown to the client. Nil lets nobody in.
	Authorize func(key ssh.PublicKey, remote netip.Addr) (Grant, error)
	// Offered says why a key or certificate would be worth nothing, nil if the
	// client may go on and prove that it has it. It is asked up to 128 times by
	// anybody: it must be a look-up in memory. Nil asks Authorize instead.
	Offered func(key ssh.PublicKey, remote netip.Addr) error
	// Review says why a connection must not go on, nil if it may. It is asked by
	// [Front.Review], must be a look-up in memory, and is called from any goroutine. Nil
	// lets all stay.
	Review func(login *Login) *Dismissal
	// ReviewJump says the same of a jump on a connection that may go on, by what Jump
	// returned for it. It is needed where Review and Jump are set.
	ReviewJump func(login *Login, target JumpConn) error
	// Exec runs a command and returns its exit status. Its context ends when the
	// channel or the connection is gone, when that was dismissed, or when Shutdown runs
	// out of patience.
	// A panic in it ends that session alone.
	Exec func(ctx context.Context, x *Exec) int
	// Jump connects to a target for a client that uses this host as its jump host,
	// within ctx. The host is as the client sent it, and the port may be any number.
	// What is not allowed is a [JumpRefusal]; of other errors the client learns the
	// kind alone. Nil refuses every jump.
	Jump func(ctx context.Context, who *Identity, host string, port uint32) (JumpConn, error)
	// Limits; the zero value means the defaults.
	Limits Limits
	// Ciphers, when set, are offered to every client in this order instead of the
	// choice by the client's identification line.
	Ciphers []string
	// Penalties are asked at each connection how to keep out sources that fail to log
	// in. Nil means the defaults of the policy.
	Penalties func() policy.Penalties
	// ProxyProtocol are asked at each connection for the networks of load balancers,
	// whose connections begin with a PROXY header. Nil is none.
	ProxyProtocol func() []netip.Prefix
	// Log, nil for slog.Default.
	Log *slog.Logger
	// Audit keeps who came and went; nil keeps nothing.
	Audit Auditor
	// Metrics counts connections, logins and jumps. Nil counts nothing.
	Metrics *metrics.Metrics

	refusals *refusals // nil for the front's own
}

// Front is the SSH server that clients meet. Make one with [NewFront], run it
// with Serve, end it with Shutdown.
type Front struct {
	hostKeys   []ssh.Signer
	hostCert   func() *ssh.Certificate
	authorize  func(ssh.PublicKey, netip.Addr) (Grant, error)
	offered    func(ssh.PublicKey, netip.Addr) error
	exec       func(context.Context, *Exec) int
	jump       func(context.Context, *Identity, string, uint32) (JumpConn, error)
	review     func(*Login) *Dismissal
	reviewJump func(*Login, JumpConn) error
	limits     Limits
	offers     cipherOffers
	log        *slog.Logger
	audit      Auditor
	metrics    *metrics.Metrics
	counters   frontCounters

	room       *waitingRoom
	arriving   atomic.Int64 // accepted, and neither in the room nor refused
	principals *tally
	memory     *budget
	penalties  *penalties
	rates      *rates
	refusals   *refusals
	balancers  func() []netip.Prefix
	slots      chan struct{} // one per open connection and jump
	jumps      chan struct{} // one per jump
	stopping   chan struct{} // closed when Shutdown begins
	reviews    atomic.Int64  // so many have begun
	draining   chan struct{} // closed when Drain begins
	drainIdle  atomic.Int64  // nanoseconds; set before that

	wg sync.WaitGroup // Serve calls and connections

	mu        sync.Mutex // guards what follows; taken before frontConn.mu
	stopped   bool
	listeners map[net.Listener]struct{}
	doors     []netip.AddrPort // where those were, also when they are closed
	conns     map[*frontConn]struct{}
}

// NewFront checks the options. It starts nothing.
func NewFront(opts FrontOptions) (*Front, error) {
	if len(opts.HostKeys) == 0 {
		return nil, errors.New("ssh front: no host key")
	}
	if opts.Authorize == nil || opts.Exec == nil {
		return nil, errors.New("ssh front: Authorize and Exec must be set")
	}
	offers, err := newCipherOffers(opts.Ciphers)
	if err != nil {
		return nil, fmt.Errorf("ssh front: %w", err)
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Audit == nil {
		opts.Audit = noAudit{}
	}
	if opts.Offered == nil {
		opts.Offered = func(key ssh.PublicKey, remote netip.Addr) error {
			_, err := opts.Authorize(key, remote)
			return err
		}
	}
	if opts.Review != nil && opts.Jump != nil && opts.ReviewJump == nil {
		return nil, errors.New("ssh front: ReviewJump must be set")
	}
	if opts.Penalties == nil {
		opts.Penalties = policy.DefaultPenalties
	}
	if opts.ProxyProtocol == nil {
		opts.ProxyProtocol = func() []netip.Prefix { return nil }
	}
	if opts.refusals == nil {
		opts.refusals = newRefusals(opts.Log)
	}
	limits := opts.Limits.withDefaults()
	return &Front{
		hostKeys: opts.HostKeys, hostCert: opts.HostCertificate, offered: opts.Offered, authorize: opts.Authorize, exec: opts.Exec, jump: opts.Jump,
		review: opts.Review, reviewJump: opts.ReviewJump,
		limits: limits, offers: offers, log: opts.Log, audit: opts.Audit, metrics: opts.Metrics,
		room:       newWaitingRoom(limits),
		principals: newTally(),
		memory:     newBudget(limits.SessionMemory),
		penalties:  newPenalties(opts.Penalties),
		rates:      newRates(),
		refusals:   opts.refusals,
		balancers:  opts.ProxyProtocol,
		slots:      make(chan struct{}, limits.openConnections()),
		jumps:      make(chan struct{}, limits.jumpPlaces()),
		stopping:   make(chan struct{}),
		draining:   make(chan struct{}),
		listeners:  make(map[net.Listener]struct{}),
		conns:      make(map[*frontConn]struct{}),
	}, nil
}

// Serve accepts connections of l until ctx ends or Shutdown is called, and
// returns nil then. It closes l. Connections live on until Shutdown: the end of
// ctx only closes the door. It may be called for several listeners.
func (f *Front) Serve(ctx context.Context, l net.Listener) error {
	if !f.begin(l) {
		return l.Close()
	}
	defer f.wg.Done()
	defer f.forget(l)
	stop := context.AfterFunc(ctx, func() { f.forget(l) })
	defer stop()
	queue := f.newBacklog(l)
	for f.takeSlot(ctx) {
		queue.pace(ctx)
		conn, err := f.accept(ctx, l)
		if err != nil {
			<-f.slots
			return err
		}
		if conn == nil {
			<-f.slots
			return nil
		}
		f.arriving.Add(1)
		f.wg.Go(func() { f.serveConn(ctx, conn) })
	}
	return nil
}

func (f *Front) begin(l net.Listener) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	f.listeners[l] = struct{}{}
	f.doors = append(f.doors, addrPort(l.Addr()))
	f.wg.Add(1)
	return true
}

func (f *Front) forget(l net.Listener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.listeners, l)
	l.Close()
}

// addresses are where the front is listening.
func (f *Front) addresses() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []netip.AddrPort
	for l := range f.listeners {
		all = append(all, addrPort(l.Addr()))
	}
	return all
}

// ownDoors are where the front was ever listening: while it drains, another process of
// the proxy does there.
func (f *Front) ownDoors() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.doors)
}

// takeSlot waits while as many connections are open as file descriptors allow.
// Clients wait in the listen queue meanwhile, which costs us nothing.
func (f *Front) takeSlot(ctx context.Context) bool {
	select {
	case f.slots <- struct{}{}:
		return true
	default:
		f.refusals.note(DelayedConnection, slog.LevelWarn, "ssh connections at their limit, new ones wait", "limit", cap(f.slots))
	}
	select {
	case f.slots <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-f.stopping:
	}
	return false
}

// accept returns nil, nil when it is time to stop.
func (f *Front) accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		conn, err := l.Accept()
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil || f.isStopping():
			return nil, nil
		case !passes(err):
			return nil, fmt.Errorf("accept: %w", err)
		}
		f.log.Warn("accept, trying again", "error", err, "delay", delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, nil
		case <-f.stopping:
			return nil, nil
		}
	}
}

func (f *Front) isStopping() bool { return isClosed(f.stopping) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// hardStopPatience is how long commands may take to return once their contexts
// ended and their connections were closed.
const hardStopPatience = 10 * time.Second

// Shutdown stops accepting, closes jumps and connections that run no command, and
// waits for the others; [Exec.Stopping] tells them. Jumps get no time: nobody can
// tell a client through them that it should come to an end. When ctx ends first, contexts are
// cancelled and connections closed, and the error of ctx is returned.
func (f *Front) Shutdown(ctx context.Context) error {
	f.stop()
	done := make(chan struct{})
	go func() { f.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	f.each((*frontConn).kill)
	select {
	case <-done:
		return ctx.Err()
	case <-time.After(hardStopPatience):
		return fmt.Errorf("commands still run %s after their contexts ended: %w", hardStopPatience, ctx.Err())
	}
}

// stop is idempotent.
func (f *Front) stop() {
	f.mu.Lock()
	if !f.stopped {
		f.stopped = true
		close(f.stopping)
	}
	for l := range f.listeners {
		l.Close()
	}
	f.mu.Unlock()
	f.each((*frontConn).closeIfUnused)
}

func (f *Front) each(do func(*frontConn)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		do(c)
	}
}

// track registers a connection with those that Shutdown ends. It reports false
// when it is too late.
func (f *Front) track(c *frontConn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	f.conns[c] = struct{}{}
	return true
}

func (f *Front) untrack(c *frontConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// runShell is all that gliderlabs/ssh does for us: the handshake with our
// configuration, then our handlers. It returns when the connection is gone; the
// handlers may still run.
func (c *frontConn) runShell() {
	server := &shell.Server{
		HostSigners: shellSigners(c.front.hostSigners()),
		ConnCallback: func(ctx shell.Context, conn net.Conn) net.Conn {
			c.peer = func() ssh.Conn { return shellPeer(ctx) }
			return conn
		},
		ServerConfigCallback:     func(shell.Context) *ssh.ServerConfig { return c.serverConfig() },
		ConnectionFailedCallback: func(_ net.Conn, err error) { c.loginFailed(err) },
		ChannelHandlers: map[string]shell.ChannelHandler{
			"session":      shellHandler(c.serveSession),
			"direct-tcpip": shellHandler(c.serveJump),
			"default":      shellHandler(c.refuseChannel),
		},
		RequestHandlers: map[string]shell.RequestHandler{
			"default": func(_ shell.Context, _ *shell.Server, req *ssh.Request) (bool, []byte) {
				return c.globalRequest(req), nil
			},
		},
	}
	server.HandleConn(c)
}

func shellHandler(serve func(*ssh.ServerConn, ssh.NewChannel)) shell.ChannelHandler {
	return func(_ *shell.Server, conn *ssh.ServerConn, ch ssh.NewChannel, _ shell.Context) { serve(conn, ch) }
}

func shellSigners(keys []ssh.Signer) []shell.Signer {
	signers := make([]shell.Signer, len(keys))
	for i, key := range keys {
		signers[i] = key
	}
	return signers
}

// shellPeer is nil until the login is through. It is the only way to a
// connection on which no channel was opened yet.
func shellPeer(ctx shell.Context) ssh.Conn {
	if conn, ok := ctx.Value(shell.ContextKeyConn).(*ssh.ServerConn); ok {
		return conn
	}
	return nil
}
