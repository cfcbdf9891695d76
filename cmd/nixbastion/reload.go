package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync"

	"nixbastion/policy"
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
// says so. Reload is told what asked for it. The function returned ends that and waits
// for it.
func followPolicy(hangups chan os.Signal, live *policy.Live, reload func(by string), log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for range hangups {
			reload("SIGHUP")
		}
	})
	wg.Go(func() {
		live.Watch(ctx, func() {
			log.Info("the policy's files have changed")
			reload("watch")
		})
	})
	return func() {
		signal.Stop(hangups)
		close(hangups)
		cancel()
		wg.Wait()
	}
}
