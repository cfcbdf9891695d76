package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"nixbastion/cache"
	"nixbastion/internal/metrics"
	"nixbastion/internal/nix"
	"nixbastion/internal/nix/serve"
	"nixbastion/internal/nix/worker"
	"nixbastion/internal/tracefile"
	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// errShutdown is why builds and transfers end when the proxy stops.
var errShutdown error = nix.Refuse("the proxy is shutting down; try again in a moment")

// Options are what a Proxy needs.
type Options struct {
	Policy *policy.Live
	// Version is the proxy's own version, shown to clients beside Nix's.
	Version string
	Log     *slog.Logger
	// Audit keeps what is done, by whom; nil keeps nothing. It outlives Shutdown.
	Audit Auditor
	// Metrics counts what happens; nil counts nothing.
	Metrics *metrics.Metrics
	// BeforeStore is called when all is ready but the store and what was learned,
	// which another process may have until it returns. Nil where there is none.
	BeforeStore func() error
	// OnReload is called when the policy is about to be loaded again, and what it returns
	// when that is over, with the error of Reload. Nil where nobody has to know.
	OnReload func(by string) (over func(error))
}

// Proxy answers Nix clients over SSH. Make one with [New], run it with Serve,
// end it with Shutdown.
type Proxy struct {
	policy  *policy.Live
	version string
	log     *slog.Logger
	audit   Auditor
	hostKey ssh.PublicKey
	tmpDir  string // for what need not outlive a client

	front *Front
	// refusals count who is turned away, and why.
	refusals *refusals
	cache    *cache.Cache
	router   *route.Router
	pool     *upstream.Pool
	builds   *builds
	found    *finder
	signing  *signing
	drains   *drains
	// sleepers wake builders and put them to sleep.
	sleepers *sleepers

	learned *learned
	loads   *loads
	glances glances
	reloads reloads
	metrics *metrics.Metrics
	// looked says that it was tried once which builders are there.
	looked  atomic.Bool
	started time.Time

	stopFetches context.CancelCauseFunc
}

// New opens the state directory and makes ready to serve. Nothing is dialled
// yet.
func New(ctx context.Context, opts Options) (*Proxy, error) {
	p := &Proxy{started: time.Now(), policy: opts.Policy, version: opts.Version, log: opts.Log, audit: opts.Audit, metrics: opts.Metrics}
	p.reloads.started, p.reloads.begins = opts.Policy.Current(), opts.OnReload
	if p.audit == nil {
		p.audit = noAudit{}
	}
	if err := p.open(ctx, opts); err != nil {
		return nil, err
	}
	p.apply(p.policy.Current())
	p.warnOfHostCertificate()
	p.metrics.Watch(p.state)
	return p, nil
}

func (p *Proxy) open(ctx context.Context, opts Options) (err error) {
	pol := p.policy.Current()
	if err := os.MkdirAll(pol.StateDir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	p.tmpDir = filepath.Join(pol.StateDir, "tmp")
	if err := os.MkdirAll(p.tmpDir, 0o700); err != nil {
		return fmt.Errorf("make directory of temporary files: %w", err)
	}
	hostKey, err := LoadOrCreateHostKey(pol.StateDir)
	if err != nil {
		return err
	}
	if err := checkHostCertificate(pol.SSH.HostCertificate, hostKey.PublicKey()); err != nil {
		return err
	}
	p.hostKey = hostKey.PublicKey()
	if opts.BeforeStore != nil {
		if err := opts.BeforeStore(); err != nil {
			return err
		}
	}
	p.learned = newLearned(pol.StateDir, p.log)
	p.router = route.New(route.Options{History: p.learned.load(), StarveAfter: pol.Scheduling.StarveAfter})
	p.loads = newLoads(p.policy, p.router, p.log)
	p.pool = upstream.NewPool(upstream.Options{Log: p.log, OnState: p.onState, OnHostKey: p.builderRefused, Sleeps: p.sleeps, ConnectTimeout: connectTimeout, Inventory: inventoryPause,
		LoadEvery: loadEvery, OnLoad: p.loads.note})
	if p.drains, err = loadDrains(pol.StateDir, p.router, p.pool, p.log); err != nil {
		return err
	}
	p.sleepers = newSleepers(ctx, p.pool, p.router, p.drains.drained, p.log)
	p.sleepers.shared = func() bool { return p.cache.Shared() } // with its builders
	p.refusals = newRefusals(p.log)
	p.front, err = NewFront(FrontOptions{
		Limits:          frontLimits(pol.SSH.Limits),
		Penalties:       func() policy.Penalties { return p.policy.Current().SSH.Penalties },
		ProxyProtocol:   func() []netip.Prefix { return p.policy.Current().SSH.ProxyProtocol },
		refusals:        p.refusals,
		HostKeys:        []ssh.Signer{hostKey},
		HostCertificate: p.hostCertificate,
		Authorize:       p.authorize,
		Offered:         p.offered,
		Exec:            p.exec,
		Jump:            p.jump,
		Review:          p.review,
		ReviewJump:      p.reviewJump,
		Ciphers:         pol.SSH.Ciphers,
		Log:             p.log,
		Audit:           p.audit,
		Metrics:         p.metrics,
	})
	if err != nil {
		return err
	}
	p.cache, err = cache.Open(ctx, cache.Options{
		Dir: filepath.Join(pol.StateDir, "cache"), Size: pol.Cache.Size, Reserve: pol.Cache.SpoolReserve, ScrubRate: pol.Cache.ScrubRate,
		Sign: p.sign,
		Log:  p.log,
	})
	if err != nil {
		return fmt.Errorf("open cache: %w", err)
	}
	p.signing = &signing{cache: p.cache, policy: p.policy, log: p.log, audit: p.audit}
	p.signing.prepare(pol)
	fetchCtx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	p.stopFetches = stop
	inflight := newInflight()
	ledger, err := openLedger(filepath.Join(pol.StateDir, "builds"), p.cache.Shared, p.policy, inflight, p.log)
	if err != nil {
		return err
	}
	p.builds = &builds{
		router: p.router, pool: p.pool, cache: p.cache, policy: p.policy, logDir: p.tmpDir, sleepers: p.sleepers, drained: p.drains.drained, metrics: p.metrics,
		rates: newRates(), refusals: p.refusals,
		inflight: inflight, ledger: ledger, differences: newDifferences(p.log), suspects: newSuspects(p.router), proofs: make(chan struct{}, maxProofs), fetchCtx: fetchCtx, audit: p.audit,
	}
	if pol.Scheduling.History != "" {
		if p.builds.history, err = tracefile.NewRecorder(pol.Scheduling.History, historyLimit); err != nil {
			return fmt.Errorf("open history (scheduling.history): %w", err)
		}
	}
	p.found = newFinder(ctx, p.pool, p.cache, p.policy, p.log)
	p.builds.misses = p.found.misses
	p.openFeeds()
	return nil
}

// openFeeds makes ready what sends to builders, for builds and ahead of them.
func (p *Proxy) openFeeds() {
	b := p.builds
	b.sending = newSending()
	b.feeds = newFeeds(&feeds{
		pool: p.pool, router: p.router, cache: p.cache, policy: p.policy,
		sending: b.sending, misses: b.misses, differences: b.differences, ctx: b.fetchCtx, running: &b.fetches,
	})
}

// Cache is the store, for the admin. It is closed by Shutdown.
func (p *Proxy) Cache() *cache.Cache { return p.cache }

// apply brings builders and the queue to what the policy says.
func (p *Proxy) apply(pol *policy.Policy) {
	p.builds.grace.update(pol.Builders)
	p.pool.Update(pol.Builders)
	p.router.SetStarveAfter(pol.Scheduling.StarveAfter)
	p.router.SetAskers(askersOf(pol))
	p.router.SetBuilders(placesOf(pol))
	p.metrics.SetLabels(labelsOf(pol))
	p.drains.apply(pol.Builders)
	p.sleepers.update(pol.Builders)
	p.loads.keep(pol.Builders)
}

// onState hears from the pool when a builder is up or down, and sleeps is asked by it
// whether one that cannot be reached is asleep.
func (p *Proxy) onState(builder string, up bool, reason string) {
	p.sleepers.setUp(builder, up, reason)
}

func (p *Proxy) sleeps(builder string) bool { return p.sleepers.unreachable(builder) }

// lookAtBuilders learns in the background which builders are there, before
// anybody needs them: who has none is to be told so, or sent away.
func (p *Proxy) lookAtBuilders() {
	p.builds.fetches.Go(func() {
		p.builds.lookAt(p.policy.Current().Builders)
		p.looked.Store(true)
	})
}

// Serve answers connections of all listeners until ctx ends, then returns nil.
// It owns the listeners.
func (p *Proxy) Serve(ctx context.Context, listeners []net.Listener) error {
	p.signing.begin(p.builds.fetchCtx)
	p.lookAtBuilders()
	p.builds.fetches.Go(func() { p.learned.keep(p.builds.fetchCtx, p.router) })
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return p.front.Serve(ctx, l) })
	}
	return group.Wait()
}

// Shutdown ends connections, builds and transfers and closes the cache. It waits
// until all of it ended, or until ctx does.
func (p *Proxy) Shutdown(ctx context.Context) error {
	var errs []error
	defer p.metrics.Watch(nil)
	go p.builds.inflight.cancelAll(errShutdown) // their clients get the reason before they are closed
	errs = append(errs, p.front.Shutdown(ctx))
	p.builds.inflight.cancelAll(errShutdown)
	p.found.close(errShutdown)
	p.stopFetches(errShutdown)
	p.sleepers.close(errShutdown)
	p.builds.fetches.Wait()
	p.signing.halt()
	errs = append(errs, p.pool.Close(ctx), p.cache.Close())
	if p.builds.history != nil {
		errs = append(errs, p.builds.history.Close())
	}
	return errors.Join(errs...)
}

// offered is asked for every key that a client offers.
func (p *Proxy) offered(key ssh.PublicKey, remote netip.Addr) error {
	return p.policy.Current().Offered(key, remote)
}

// authorize is asked for keys that a client has proved to own.
func (p *Proxy) authorize(key ssh.PublicKey, remote netip.Addr) (Grant, error) {
	access, err := p.policy.Current().Identify(key, remote)
	if err != nil {
		return Grant{}, err
	}
	return Grant{
		Principal: access.Principal.Name, MaxConnections: access.Principal.MaxConnections,
		ConnectionsPerMinute: int(access.Principal.ConnectionsPerMinute),
		Certificate:          access.Certificate, Data: access,
	}, nil
}

// exec answers what a client asked for and returns its exit status.
func (p *Proxy) exec(ctx context.Context, x *Exec) int {
	log := p.log.With("principal", x.Identity.Principal, "remote", x.Identity.Remote.String())
	cmd, err := p.commandOf(x)
	if err != nil {
		log.Warn("command refused", "command", quoted(x.Command), "reason", err.Error())
		p.front.refusedTo(x.Identity, x.Command, err.Error())
		x.say(endText(err))
		return statusRefused
	}
	switch cmd.kind {
	case commandDaemon:
		return p.serveDaemon(ctx, x, log)
	case commandServe:
		return p.serveStore(ctx, x, cmd.write, log)
	case commandProbe:
		log.Info("probe answered", "command", quoted(x.Command))
		return p.answerProbe(x, cmd.words)
	default:
		log.Info("question asked", "command", quoted(x.Command))
		return p.answerQuestion(ctx, x, cmd.words)
	}
}

// commandOf recognises what is to be served: what the client asks for, or what
// the admin has set for its key. As with sshd, the latter leaves no choice.
func (p *Proxy) commandOf(x *Exec) (command, error) {
	if forced := accessOf(x).Command; forced != "" {
		c, err := parseCommand(forced, policy.Commands{})
		if err != nil {
			return command{}, &nix.UserError{Message: forcedCommand, Err: fmt.Errorf("the policy sets %s", quoted(forced))}
		}
		return c, nil
	}
	return parseCommand(x.Command, p.policy.Current().Commands)
}

// accessOf is what the key of a client opens; authorize put it there.
func accessOf(x *Exec) *policy.Access { return x.Identity.Data.(*policy.Access) }

// say tells the user one sentence.
func (x *Exec) say(sentence string) { x.print(x.Stderr, "nixbastion: "+sentence+"\n") }

// operates notes what the command does.
func (x *Exec) operates(operation string) {
	if x.Operates != nil {
		x.Operates(operation)
	}
}

// print writes lines for people to one of the client's streams. An error means
// that nobody is there to read them.
func (x *Exec) print(w io.Writer, text string) { x.write(w, text) }

func (x *Exec) write(w io.Writer, text string) error {
	if x.Terminal {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	_, err := io.WriteString(w, text)
	return err
}

// nixVersion is the Nix release whose daemon we answer like; clients show it
// and decide nothing by it.
const nixVersion = "2.34.8"

func (p *Proxy) daemonVersion() string {
	return fmt.Sprintf("%s (nixbastion %s)", nixVersion, p.version)
}

// serveDaemon speaks the worker protocol.
func (p *Proxy) serveDaemon(ctx context.Context, x *Exec, log *slog.Logger) int {
	principal := accessOf(x).Principal
	s := p.newSession(principal, log)
	s.serves(x)
	defer s.close()
	err := worker.Serve(ctx, stdio{x.Stdin, x.Stdout}, s, worker.ServeOptions{
		DaemonVersion: p.daemonVersion(),
		Trust:         trustOf(principal.Role),
		Refuse:        p.refusal(principal),
		Stopping:      x.Stopping,
		OnOp:          s.operates,
		OnIdle:        func() { s.operates("") },
		Draining:      worker.Draining{Begun: x.Draining, Idle: x.DrainIdle},
		OnError:       func(op string, err error) { log.Error("operation failed", "op", op, "error", err) },
		OnDone:        p.operationDone,
	})
	return ended(x, err, log)
}

// serveStore speaks the serve protocol. write says that the command had --write,
// as that of all clients has, also of those that only read: whether this one may
// write is the session's to say, in the same words as to everybody.
func (p *Proxy) serveStore(ctx context.Context, x *Exec, write bool, log *slog.Logger) int {
	principal := accessOf(x).Principal
	s := p.newSession(principal, log)
	s.serves(x)
	defer s.close()
	spoolDir := ""
	if principal.Role == policy.RoleFull {
		spoolDir = p.tmpDir // imports are read before the session is asked
	}
	err := serve.Serve(ctx, stdio{x.Stdin, x.Stdout}, s, serve.ServeOptions{
		Write:    write,
		Refuse:   p.refusal(principal),
		Stopping: x.Stopping,
		OnOp:     s.operates,
		OnIdle:   func() { s.operates("") },
		Draining: serve.Draining{Begun: x.Draining, Idle: x.DrainIdle},
		Stderr:   x.Stderr,
		SpoolDir: spoolDir,
		OnError:  func(op string, err error) { log.Error("operation failed", "op", op, "error", err) },
		OnDone:   p.operationDone,
	})
	return ended(x, err, log)
}

// ended tells why a session ended, if not in order, and returns its exit status.
func ended(x *Exec, err error, log *slog.Logger) int {
	if why := x.sentAway(); why != nil {
		err = why
	}
	if err == nil {
		return 0
	}
	log.Warn("session ended", "error", err)
	x.say(endText(err))
	return 1
}

// endText is what a client may read of the error that ended its session. What
// the proxy's own disk and network said is not its business.
func endText(err error) string {
	var user *nix.UserError
	var file *fs.PathError
	var call *os.SyscallError
	switch {
	case errors.As(err, &user):
		return user.Message
	case errors.As(err, &file) || errors.As(err, &call):
		return errInternal.Error()
	}
	return err.Error()
}

func (p *Proxy) newSession(principal *policy.Principal, log *slog.Logger) *session {
	return &session{
		principal: principal, cache: p.cache, builds: p.builds, found: p.found, feeder: p.builds.feeds.newFeeder(principal, log), log: log,
		pins: p.cache.NewPins(principal.Name), promises: promises{keepers: p.found.keepers},
	}
}

// refusal returns why a principal's sessions are refused now, "" if they are
// not: whoever asked for it is sent away while no builder of his is up, so that
// his client builds by itself.
func (p *Proxy) refusal(principal *policy.Principal) string {
	return noBuilder(principal, p.router)
}

func noBuilder(principal *policy.Principal, router *route.Router) string {
	if principal.NoBuilder != policy.NoBuilderRefuse {
		return ""
	}
	down := router.Down(principal.Domain)
	if down == "" {
		return ""
	}
	return "no builder is up: " + down
}

func quoted(text string) string {
	const limit = 128
	if len(text) > limit {
		text = text[:limit]
	}
	return fmt.Sprintf("%q", text)
}
