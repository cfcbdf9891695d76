package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"nixbastion/internal/metrics"
	"nixbastion/policy"
	"nixbastion/proxy"
)

// server is a proxy that serves, with what belongs to the process.
type server struct {
	before *predecessor // nil for none
	stops  *stops
	live   *policy.Live
	log    *slog.Logger
	doors  []door
	proxy  *proxy.Proxy
	admin  *admin
	// auditor is nil for none, and outlives all else.
	auditor proxy.Auditor
	monitor *monitor // nil for none
	// leaves is the admin's socket of the process before, if the policy has another.
	leaves *net.UnixListener

	// upgrading is held until we serve, while another process is about to take our place,
	// and for good once we stop.
	upgrading sync.Mutex
	replaced  chan struct{} // closed when it has
	// next is the process that does, or has; nil for none.
	next atomic.Pointer[successor]
	// hearing counts those who listen to the processes before and after.
	hearing sync.WaitGroup
}

func newServer(before *predecessor, stops *stops, live *policy.Live, auditor proxy.Auditor, log *slog.Logger) *server {
	s := &server{before: before, stops: stops, live: live, log: log, auditor: auditor, replaced: make(chan struct{})}
	s.upgrading.Lock()
	return s
}

func (s *server) isReplaced() bool {
	select {
	case <-s.replaced:
		return true
	default:
		return false
	}
}

// start makes ready to serve. What may fail comes before the store is asked for.
func (s *server) start(in inherited) (err error) {
	pol := s.live.Current()
	if s.doors, err = listenAll(pol.Listen, in.doors); err != nil {
		in.close()
		return err
	}
	numbers := metrics.New(version)
	opts := proxy.Options{Policy: s.live, Version: version, Log: s.log, Audit: s.auditor, Metrics: numbers, OnReload: s.reloading}
	if s.before != nil {
		opts.BeforeStore = s.before.awaitStore
	}
	if s.proxy, err = proxy.New(context.Background(), opts); err != nil {
		return err
	}
	if s.monitor, err = startMonitor(in.metrics, pol.Metrics, numbers, s.proxy, s.log); err != nil {
		return errors.Join(err, shutdown(s.proxy))
	}
	if s.admin, err = s.startAdmin(in.admin); err != nil {
		return errors.Join(err, shutdown(s.proxy), s.monitor.stop())
	}
	return nil
}

// startAdmin answers on the socket that is open already, if the policy wants that one.
func (s *server) startAdmin(open *net.UnixListener) (*admin, error) {
	change := func(ctx context.Context, by string, words []string) (string, error) {
		if words[0] == "upgrade" {
			return s.upgrade(context.Background())
		}
		answer, err := s.proxy.ChangeAdmin(ctx, by, words)
		if err == nil && s.before != nil && strings.HasSuffix(words[0], "drain") {
			s.before.tell(lineDrains)
		}
		return answer, err
	}
	if open != nil && open.Addr().String() == s.live.Current().Admin.Socket {
		return startAdminOn(open, s.live, s.proxy.AskAdmin, change, s.proxy.Cache(), s.auditor, s.log), nil
	}
	s.leaves = open
	return startAdmin(s.live, s.proxy.AskAdmin, change, s.proxy.Cache(), s.auditor, s.log)
}

// run serves until it is time to stop, or another process serves.
func (s *server) run(config string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	doors, closeDoors := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- s.proxy.Serve(doors, listeners(s.doors)) }()
	err := s.takePlace()
	if err == nil {
		err = s.serving(ctx, config, served)
	}
	closeDoors()
	err = errors.Join(err, <-served)
	cancel() // the watchdog, too
	if s.isReplaced() {
		err = errors.Join(err, s.endReplaced())
	} else {
		err = errors.Join(err, s.end(err))
	}
	s.hearNoMore()
	return err
}

// takePlace returns once the process before, if there is one, has nothing to take back
// any more. What it did with its sockets' files is ours to do from then on.
func (s *server) takePlace() error {
	if s.before != nil && s.stops.asked.Err() != nil {
		return errors.New("it was asked to end") // and the process before was not, perhaps
	}
	if err := s.before.serving(); err != nil {
		return err
	}
	defer s.upgrading.Unlock()
	if s.before != nil {
		s.hearing.Go(func() { s.before.hear(s.doFor(byBefore)) })
	}
	if s.leaves != nil {
		s.leaves.SetUnlinkOnClose(true)
		s.leaves.Close()
	}
	s.admin.listener.SetUnlinkOnClose(true)
	return nil
}

// serving returns when that is to end.
func (s *server) serving(ctx context.Context, config string, served chan error) error {
	s.log.Info("serving", "version", version, "listen", addressesOf(s.doors), "config", config, "after", time.Since(began).Round(time.Millisecond).String())
	notify(s.log, daemon.SdNotifyReady, statusText("serving on %s", strings.Join(addressesOf(s.doors), ", ")))
	go watchdog(ctx, watchdogInterval(s.log), s.proxy.Alive, s.log)
	var err error
	select {
	case <-s.replaced:
		return nil
	case err = <-served: // a socket failed
		served <- nil
	case <-s.stops.asked.Done():
	}
	s.upgrading.Lock() // one that is under way comes to its end
	return err
}

// end lets what runs come to its end, and ends it when its time is up. After an error
// there is no such time.
func (s *server) end(failed error) error {
	limit := s.live.Current().DrainTimeout
	s.log.Info("shutting down", "drain_timeout", limit.String())
	notify(s.log, daemon.SdNotifyStopping, statusText("stopping: builds that run have %s", limit))
	telling, toldEnough := context.WithCancel(context.Background())
	var told sync.WaitGroup
	told.Go(func() { extendStop(telling, s.log) })
	defer told.Wait()
	defer toldEnough()
	if failed == nil && limit > 0 {
		ctx, cancel := context.WithTimeout(s.stops.urged, limit)
		s.proxy.Drain(ctx, limit)
		cancel()
	}
	// Whoever watches sees how the proxy drains.
	return errors.Join(stopAdmin(s.admin.stop), shutdown(s.proxy), s.monitor.stop())
}

// endReplaced is end for a process whose place another one has taken: nobody waits for
// it, so what runs has all its time, or drain_timeout from the first signal on.
func (s *server) endReplaced() error {
	next := s.next.Load()
	s.log.Info("another process serves; ending what runs", "pid", next.process.Pid)
	s.hearing.Go(func() { next.hear(s.doFor(byNext)) })
	err := errors.Join(stopAdmin(s.admin.leave), s.monitor.stop())
	ctx, cancel := context.WithCancel(s.stops.urged)
	defer cancel()
	defer context.AfterFunc(s.stops.asked, func() {
		time.AfterFunc(s.live.Current().DrainTimeout, cancel)
	})()
	s.proxy.DrainReplaced(ctx)
	s.log.Info("shutting down")
	return errors.Join(err, shutdown(s.proxy))
}

// stops are the signals that end a process.
type stops struct {
	asked, urged context.Context // done at the first and at the second
	end          func()
}

func watchStops() *stops {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	asked, ask := context.WithCancel(context.Background())
	urged, urge := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range signals {
			if asked.Err() != nil {
				urge()
			}
			ask()
		}
	}()
	return &stops{asked: asked, urged: urged, end: func() {
		signal.Stop(signals)
		close(signals)
		<-done
		ask()
		urge()
	}}
}
