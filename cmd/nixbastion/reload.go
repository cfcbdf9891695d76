package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"nixbastion/policy"
	"nixbastion/proxy"
)

type reloadCmd struct {
	changeFlags
}

// Run has the running proxy load its policy file again, and prints what that came
// to. Mistakes are printed as check prints them.
func (c reloadCmd) Run(out io.Writer) error {
	socket, err := c.socket()
	if err != nil {
		return err
	}
	return request(out, socket, http.MethodPost, "reload")
}

// followPolicy loads the policy again at each SIGHUP, and when its files change if it
// says so. What that comes to is logged. The function returned ends that and waits
// for it.
func followPolicy(p *proxy.Proxy, live *policy.Live, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range hangups {
			p.Reload("SIGHUP")
		}
	})
	wg.Go(func() {
		live.Watch(ctx, func() {
			log.Info("the policy's files have changed")
			p.Reload("watch")
		})
	})
	return func() {
		signal.Stop(hangups)
		close(hangups)
		cancel()
		wg.Wait()
	}
}
