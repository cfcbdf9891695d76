package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy"
)

type serveCmd struct {
	Config string `help:"The policy file." required:"" type:"path"`
}

// began is when the process did.
var began = time.Now()

// shutdownTimeout is how long what still runs gets to end once the time to drain is
// over.
const shutdownTimeout = 20 * time.Second

// Run serves until SIGTERM or SIGINT: then nothing new is accepted, and what runs has
// drain_timeout to end. A second signal ends it at once. SIGHUP loads the policy
// file again. `nixbastion upgrade` has another process take the place of this one.
func (c serveCmd) Run() error {
	before, err := findPredecessor()
	if err != nil {
		return err
	}
	err = c.serve(before)
	before.failed(err)
	return err
}

func (c serveCmd) serve(before *predecessor) error {
	stops := watchStops()
	defer stops.end()
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // early: unhandled it would end us
	in, err := inheritSockets()
	if err != nil {
		return err
	}
	live, err := policy.NewLive(c.Config)
	if err != nil {
		in.close()
		before.failed(err)
		return reportMistakes(err)
	}
	s := &server{before: before, stops: stops, live: live, log: newLogger(live.Current().Log), replaced: make(chan struct{})}
	tuneMemory()
	defer tuneProcessors()()
	if err := s.start(in); err != nil {
		return err
	}
	stopReloads := reloadOnHangup(hangups, s.reload)
	defer stopReloads()
	return s.run(c.Config)
}

func newLogger(l policy.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: l.Level}
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, opts))
}

// reloadOnHangup loads the policy again at each SIGHUP. The function returned
// ends that and waits for it.
func reloadOnHangup(hangups chan os.Signal, reload func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range hangups {
			reload()
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(hangups)
		<-done
	}
}

func reload(p *proxy.Proxy, live *policy.Live, log *slog.Logger) error {
	before := live.Current()
	if err := p.Reload(); err != nil {
		log.Error("policy refused; the old one stays", "error", err.Error())
		return err
	}
	log.Info("policy loaded")
	if keys := before.NeedsRestart(live.Current()); len(keys) > 0 {
		log.Warn("some changes count after a restart only", "keys", keys)
	}
	return nil
}

// adminPatience is how long questions under way get to be answered.
const adminPatience = time.Second

func stopAdmin(stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), adminPatience)
	defer cancel()
	return stop(ctx)
}

func shutdown(p *proxy.Proxy) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	return p.Shutdown(ctx)
}
