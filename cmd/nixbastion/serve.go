package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"nixbastion/internal/metrics"
	"nixbastion/policy"
	"nixbastion/proxy"
)

type serveCmd struct {
	Config string `help:"The policy file." required:"" type:"path"`
}

// shutdownTimeout is how long running operations get to end after SIGTERM.
const shutdownTimeout = 20 * time.Second

// Run serves until SIGTERM or SIGINT. For what loads the policy again see followPolicy.
func (c serveCmd) Run() (failure error) {
	live, err := policy.NewLive(c.Config)
	if err != nil {
		return reportMistakes(err)
	}
	log := newLogger(live.Current().Log)
	limitMemory()
	tuneMemory()
	defer tuneProcessors()()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	auditor, closeAudit, err := openAudit(live, c.Config, log)
	if err != nil {
		return err
	}
	defer closeAudit()
	numbers := metrics.New(version)
	p, err := proxy.New(ctx, proxy.Options{Policy: live, Version: version, Log: log, Audit: auditor, Metrics: numbers})
	if err != nil {
		return err
	}
	monitor, err := startMonitor(nil, live.Current().Metrics, numbers, p, log)
	if err != nil {
		return errors.Join(err, shutdown(p))
	}
	defer func() { failure = errors.Join(failure, monitor.stop()) }()
	admin, err := startAdmin(live, p.AskAdmin, p.ChangeAdmin, p.Cache(), auditor, log)
	if err != nil {
		return errors.Join(err, shutdown(p))
	}
	listeners, err := listenAll(live.Current().Listen)
	if err != nil {
		return errors.Join(err, stopAdmin(admin), shutdown(p))
	}
	stopReloads := followPolicy(p, live, log)
	log.Info("serving", "version", version, "listen", live.Current().Listen, "config", c.Config)
	err = p.Serve(ctx, listeners)
	stopReloads()
	log.Info("shutting down")
	return errors.Join(err, stopAdmin(admin), shutdown(p))
}

func newLogger(l policy.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: l.Level}
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, opts))
}

func listenAll(addresses []string) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, address := range addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			for _, open := range listeners {
				open.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// adminPatience is how long questions under way get to be answered.
const adminPatience = time.Second

func stopAdmin(a *admin) error {
	ctx, cancel := context.WithTimeout(context.Background(), adminPatience)
	defer cancel()
	return a.stop(ctx)
}

func shutdown(p *proxy.Proxy) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	return p.Shutdown(ctx)
}
