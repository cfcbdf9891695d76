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

	"nixbastion/policy"
	"nixbastion/proxy"
)

type serveCmd struct {
	Config string `help:"The policy file." required:"" type:"path"`
}

// shutdownTimeout is how long running operations get to end after SIGTERM.
const shutdownTimeout = 20 * time.Second

// Run serves until SIGTERM or SIGINT. SIGHUP loads the policy file again.
func (c serveCmd) Run() error {
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
	p, err := proxy.New(ctx, proxy.Options{Policy: live, Version: version, Log: log})
	if err != nil {
		return err
	}
	admin, err := startAdmin(live, p.AskAdmin, p.ChangeAdmin, p.Cache(), log)
	if err != nil {
		return errors.Join(err, shutdown(p))
	}
	listeners, err := listenAll(live.Current().Listen)
	if err != nil {
		return errors.Join(err, stopAdmin(admin), shutdown(p))
	}
	stopReloads := reloadOnHangup(p, live, log)
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

// reloadOnHangup loads the policy again at each SIGHUP. The function returned
// ends that and waits for it.
func reloadOnHangup(p *proxy.Proxy, live *policy.Live, log *slog.Logger) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range hangups {
			reload(p, live, log)
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(hangups)
		<-done
	}
}

func reload(p *proxy.Proxy, live *policy.Live, log *slog.Logger) {
	before := live.Current()
	if err := p.Reload(); err != nil {
		log.Error("policy refused; the old one stays", "error", err.Error())
		return
	}
	log.Info("policy loaded")
	if keys := before.NeedsRestart(live.Current()); len(keys) > 0 {
		log.Warn("some changes count after a restart only", "keys", keys)
	}
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
