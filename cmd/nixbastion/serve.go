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
// drain_timeout to end. A second signal ends it at once. For what loads the policy again
// see followPolicy. `nixbastion upgrade` has another process take the place of this one.
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
	// Whoever reads the log may go. Not ignored, as commands that we run would be, too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
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
	log := newLogger(live.Current().Log)
	limitMemory()
	tuneMemory()
	defer tuneProcessors()()
	auditor, closeAudit, err := openAudit(live, c.Config, log)
	if err != nil {
		in.close()
		return err
	}
	defer closeAudit()
	s := newServer(before, stops, live, auditor, log)
	if err := s.start(in); err != nil {
		return err
	}
	defer followPolicy(hangups, live, s.reload, log)()
	return s.run(c.Config)
}

func newLogger(l policy.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: l.Level}
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, opts))
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
