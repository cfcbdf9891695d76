package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"nixbastion/cache"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// The admin asks on a unix socket, over HTTP, for which every machine has a
// client: GET /status and GET /why, with a parameter word for each word that
// follows, --json among them. The answer is text. POST /drain and /undrain change
// something, with words likewise. POST /cache is a command on the store: see
// cacheRequest and frameKind.

const (
	adminSocketMode = 0o660
	// adminConns is how many connections are answered at once; more wait.
	adminConns = 16
	// adminHeaderBytes is the largest question. There is no body.
	adminHeaderBytes = 16 << 10
	adminReadTimeout = 5 * time.Second
	// adminWriteTimeout bounds an answer, and so does a reader that does not read.
	adminWriteTimeout = 20 * time.Second
	// staleTimeout is how long whoever has the socket may take to answer.
	staleTimeout = 2 * time.Second
)

// askFunc answers a question, as [proxy.Proxy.AskAdmin] does.
type askFunc func(ctx context.Context, words []string) (string, error)

// changeFunc changes something, as [proxy.Proxy.ChangeAdmin] does.
type changeFunc func(words []string) (string, error)

// changes are the paths of what is changed.
var changes = []string{"/drain", "/undrain", "/upgrade"}

// admin is the socket and who answers on it.
type admin struct {
	policy *policy.Live
	ask    askFunc
	change changeFunc
	cache  *cache.Cache
	log    *slog.Logger
	// listener is handed on in an upgrade.
	listener *net.UnixListener
	server   *http.Server
	served   chan error
	// open is read-locked by commands on the store, which must not outlive it, and
	// locked for good at the end.
	open sync.RWMutex
}

// startAdmin answers on the socket of the policy until stop.
func startAdmin(live *policy.Live, ask askFunc, change changeFunc, store *cache.Cache, log *slog.Logger) (*admin, error) {
	path := live.Current().Admin.Socket
	listener, err := listenAdmin(path)
	if err != nil {
		return nil, fmt.Errorf("listen on the admin's socket %s: %w\nhint: %s", path, err, adminHint(err))
	}
	return startAdminOn(listener, live, ask, change, store, log), nil
}

// startAdminOn answers on a socket until stop.
func startAdminOn(listener *net.UnixListener, live *policy.Live, ask askFunc, change changeFunc, store *cache.Cache, log *slog.Logger) *admin {
	a := &admin{policy: live, ask: ask, change: change, cache: store, log: log, listener: listener, served: make(chan error, 1)}
	a.server = &http.Server{
		Handler: a, ConnContext: withPeer, MaxHeaderBytes: adminHeaderBytes,
		ReadTimeout: adminReadTimeout, WriteTimeout: adminWriteTimeout, IdleTimeout: adminReadTimeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		a.served <- a.server.Serve(&fewConns{UnixListener: listener, room: make(chan struct{}, adminConns)})
	}()
	return a
}

// leave is stop for a process whose socket another one has.
func (a *admin) leave(ctx context.Context) error {
	a.listener.SetUnlinkOnClose(false)
	return a.stop(ctx)
}

// stop removes the socket, and waits for those who are being answered until ctx
// ends.
func (a *admin) stop(ctx context.Context) error {
	err := a.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, a.server.Close())
	}
	a.open.Lock()
	if end := <-a.served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}

// listenAdmin makes the socket. One that is left from a proxy that was killed is
// replaced; one on which somebody answers is not.
func listenAdmin(path string) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, cause(err)
	}
	if err := os.Chmod(path, adminSocketMode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

var (
	errNoSocket = errors.New("there is something else of that name")
	errAnswers  = errors.New("somebody answers there already")
)

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return cause(err)
	case info.Mode().Type() != fs.ModeSocket:
		return errNoSocket
	}
	conn, err := net.DialTimeout("unix", path, staleTimeout)
	switch {
	case err == nil:
		conn.Close()
		return errAnswers
	case errors.Is(err, syscall.ECONNREFUSED):
		return cause(os.Remove(path))
	}
	return cause(err)
}

// cause is an error of the system without the path, which its reader has.
func cause(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}

func adminHint(err error) string {
	const choose = "choose another place: admin: {socket: PATH}"
	switch {
	case errors.Is(err, errAnswers):
		return "if another nixbastion runs, give this one its own socket: admin: {socket: PATH}"
	case errors.Is(err, errNoSocket):
		return "remove it, or " + choose
	case errors.Is(err, fs.ErrNotExist):
		return "make its directory, which the proxy does only for state_dir, or " + choose
	case errors.Is(err, fs.ErrPermission):
		return "let the proxy's account write to its directory, or " + choose
	}
	return choose
}

// fewConns is a listener with room for some connections at once.
type fewConns struct {
	*net.UnixListener
	room chan struct{}
}

// Accept waits for room first, so that those who wait cost nothing.
func (l *fewConns) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	conn, err := l.AcceptUnix()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &fewConn{UnixConn: conn, leave: sync.OnceFunc(func() { <-l.room })}, nil
}

type fewConn struct {
	*net.UnixConn
	leave func()
}

func (c *fewConn) Close() error {
	defer c.leave()
	return c.UnixConn.Close()
}

// peerKey is where a connection's context has the peer.
type peerKey struct{}

// peer is the account at the other end, as the system says.
type peer struct {
	uid int
	err error
}

func withPeer(ctx context.Context, conn net.Conn) context.Context {
	uid, err := peerUID(conn.(syscall.Conn))
	return context.WithValue(ctx, peerKey{}, peer{uid, err})
}

// ServeHTTP answers those who may ask, and tells others that they may not.
func (a *admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who := r.Context().Value(peerKey{}).(peer)
	words := append([]string{strings.TrimPrefix(r.URL.Path, "/")}, r.URL.Query()["word"]...)
	log := a.log.With("uid", who.uid, "question", strconv.QuoteToASCII(clip(strings.Join(words, " "))))
	if !a.mayAsk(who) {
		log.Warn("admin's question refused")
		http.Error(w, "this account may not ask here; the admin names it in the policy: admin: {users: [NAME]}", http.StatusForbidden)
		return
	}
	if r.Method == http.MethodPost && r.URL.Path == "/cache" {
		a.serveCache(w, r, who)
		return
	}
	if r.Method == http.MethodPost && slices.Contains(changes, r.URL.Path) {
		if !who.mayChange() {
			log.Warn("admin's command refused")
			http.Error(w, "this account may look; only root and the proxy's own account may change something", http.StatusForbidden)
			return
		}
		log.Info("admin's command")
		answer, err := a.change(words)
		reply(w, answer, err)
		return
	}
	if r.Method != http.MethodGet {
		http.Error(w, "there is nothing to change here; ask with GET", http.StatusMethodNotAllowed)
		return
	}
	log.Info("admin's question asked")
	answer, err := a.ask(r.Context(), words)
	reply(w, answer, err)
}

func reply(w http.ResponseWriter, answer string, err error) {
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, answer) // an error means that nobody reads it
}

func statusOf(err error) int {
	if errors.As(err, new(*proxy.UsageError)) {
		return http.StatusBadRequest
	}
	return http.StatusUnprocessableEntity
}

// mayChange is for root and the proxy's own account.
func (p peer) mayChange() bool { return p.err == nil && (p.uid == 0 || p.uid == os.Geteuid()) }

// mayAsk lets in root, the proxy's own account, and whom the policy names.
func (a *admin) mayAsk(who peer) bool {
	switch {
	case who.err != nil:
		a.log.Error("admin's socket does not tell who asks", "error", who.err)
		return false
	case who.mayChange():
		return true
	}
	return slices.ContainsFunc(a.policy.Current().Admin.Users, func(name string) bool {
		account, err := user.Lookup(name)
		if err != nil {
			a.log.Warn("admin.users names an account that is not found", "user", name, "error", err)
			return false
		}
		return account.Uid == strconv.Itoa(who.uid)
	})
}

// clip cuts a question to what fits a line of the log.
func clip(text string) string {
	const limit = 256
	return text[:min(len(text), limit)]
}
