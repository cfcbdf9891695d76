// Command demo shows a nixbastion at work to somebody who sees it for the first
// time: two builders, the proxy and two clients come up as network namespaces
// with real Nix and OpenSSH, a few builds run, and all of it is taken down.
//
// Begin with story.go, which is what the reader of its output reads. Whatever
// the story claims is looked up where it happened (evidence.go, remains.go): a
// claim that does not hold ends the demo with status 1. It runs as root, with
// the path of the program in NIXBASTION_BIN, as `make demo` does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// The exit statuses of the command.
const (
	exitFailure     = 1
	exitInterrupted = 130 // as of a program that SIGINT ended
)

func main() {
	// SIGPIPE too: whoever reads us may go away, and hosts must end all the same.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	os.Exit(run(ctx, os.Stdout, os.Stderr))
}

func run(ctx context.Context, stdout, stderr io.Writer) (status int) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "The demo needs root, for network namespaces and mounts: run `sudo make demo`.")
		return exitFailure
	}
	err := show(ctx, &page{out: stdout}, plot{})
	switch {
	case ctx.Err() != nil && err != nil:
		fmt.Fprintln(stderr, "\nInterrupted. "+farewell(err))
		return exitInterrupted
	case err != nil:
		fmt.Fprintf(stderr, "\nThe demo failed: %v\n", err)
		return exitFailure
	}
	return 0
}

// farewell says how the clean-up went after an interrupt.
func farewell(err error) string {
	if left := (*leftError)(nil); errors.As(err, &left) {
		return left.Error()
	}
	return "Everything was taken down."
}

// show raises the stage, tells the story and takes the stage down, whatever
// happens in between.
func show(ctx context.Context, p *page, as plot) error {
	p.title("nixbastion: one SSH host in front of all your Nix builders")
	before, err := look()
	if err != nil {
		return err
	}
	s, err := raise(ctx, p, as)
	if err == nil {
		err = tell(ctx, p, s)
	}
	if err != nil && ctx.Err() == nil {
		err = s.withLog(err)
	}
	if closeErr := s.close(); closeErr != nil {
		return errors.Join(err, &leftError{closeErr})
	}
	if left := before.remains(); left != nil {
		return errors.Join(err, &leftError{left})
	}
	if err == nil {
		p.chapter("Gone again")
		p.text("The machines are down, and no process, mount, namespace or folder of theirs is left. From start to end that took %.0f seconds.", time.Since(s.began).Seconds())
	}
	return err
}
