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
// client: GET /QUESTION, such as GET /status, with a parameter word for each word that
// follows, --json among them. The answer is text, for a terminal or with colours if a
// parameter says so. POST /drain, /undrain, /kill, /reload and /upgrade change
// something, with words likewise. POST /explain has its question as the body. POST /cache
// is a command on the store: see
// cacheRequest and frameKind.

const (
	adminSocketMode = 0o660
	// adminConns is how many connections are answered at once; more wait.
	adminConns = 16
	// adminHeaderBytes is the largest question. There is no body.
	adminHeaderBytes = 16 << 10
	adminReadTimeout = 5 * time.Second
	// adminWriteTimeout bounds each piece of an answer: a reader that does not read
	// ends it.
	adminWriteTimeout = 20 * time.Second
	// staleTimeout is how long whoever has the socket may take to answer.
	staleTimeout = 2 * time.Second
)

// askFunc answers a question, as [proxy.Proxy.AskAdmin] does.
type askFunc func(ctx context.Context, out io.Writer, words []string, look proxy.Look) error

// changeFunc changes something, as [proxy.Proxy.ChangeAdmin] does.
type changeFunc func(ctx context.Context, by string, words []string) (string, error)

// changes are the paths of what is changed.
var changes = []string{"/drain", "/undrain", "/kill", "/reload", "/upgrade"}

// admin is the socket and who answers on it.
type admin struct {
	policy *policy.Live
	ask    askFunc
	change changeFunc
	cache  *cache.Cache
	audit  proxy.Auditor
	log    *slog.Logger
	// listener is handed on in an upgrade.
	listener *net.UnixListener
	server   *http.Server
	served   chan error
	// open is read-locked by commands on the store and by answers, which must not
	// outlive it, and locked for good at the end.
	open sync.RWMutex
	// explaining lets one question with a body be read and answered at a time.
	explaining sync.Mutex
	// long has a token for each answer that goes on, and halted ends them.
	long   chan struct{}
	halted context.Context
	halt   context.CancelFunc
}

// startAdmin answers on the socket of the policy until stop.
func startAdmin(live *policy.Live, ask askFunc, change changeFunc, store *cache.Cache, auditor proxy.Auditor, log *slog.Logger) (*admin, error) {
	path := live.Current().Admin.Socket
	listener, err := listenAdmin(path)
	if err != nil {
		return nil, fmt.Errorf("listen on the admin's socket %s: %w\nhint: %s", path, err, adminHint(err))
	}
	return startAdminOn(listener, live, ask, change, store, auditor, log), nil
}

// startAdminOn answers on a socket until stop.
func startAdminOn(listener *net.UnixListener, live *policy.Live, ask askFunc, change changeFunc, store *cache.Cache, auditor proxy.Auditor, log *slog.Logger) *admin {
	a := &admin{
		policy: live, ask: ask, change: change, cache: store, audit: auditor, log: log, listener: listener,
		served: make(chan error, 1), long: make(chan struct{}, adminLong),
	}
	a.halted, a.halt = context.WithCancel(context.Background())
	a.server = &http.Server{
		Handler: a, ConnContext: withPeer, MaxHeaderBytes: adminHeaderBytes,
		ReadTimeout: adminReadTimeout, WriteTimeout: adminWriteTimeout, IdleTimeout: adminReadTimeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		a.served <- a.server.Serve(withRoomFor(adminConns, listener))
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
	a.halt()
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
	if r.Method == http.MethodPost && r.URL.Path == "/explain" {
		log.Info("admin's question asked")
		a.serveExplain(w, r)
		return
	}
	if r.Method == http.MethodPost && slices.Contains(changes, r.URL.Path) {
		if !who.mayChange() {
			log.Warn("admin's command refused")
			a.record(who, words, auditRefused, nil)
			http.Error(w, "this account may look; only root and the proxy's own account may change something", http.StatusForbidden)
			return
		}
		log.Info("admin's command")
		answer, err := a.change(r.Context(), who.name(), words)
		a.record(who, words, auditDone, err)
		reply(w, answer, err)
		return
	}
	if r.Method != http.MethodGet {
		http.Error(w, "there is nothing to change here; ask with GET", http.StatusMethodNotAllowed)
		return
	}
	log.Info("admin's question asked")
	a.answer(w, r, words)
}

func reply(w http.ResponseWriter, answer string, err error) {
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, answer) // an error means that nobody reads it
}

// statusMistakes is that of a policy that was refused: the answer is its mistakes.
const statusMistakes = http.StatusConflict

func statusOf(err error) int {
	if errors.As(err, new(*proxy.UsageError)) {
		return http.StatusBadRequest
	}
	if errors.As(err, new(*policy.Mistakes)) {
		return statusMistakes
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
