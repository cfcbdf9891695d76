package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

const (
	// checkTimeout is what one builder may take from the first packet to the end
	// of its session. It is above the sum of the pool's own time limits, whose
	// errors say more.
	checkTimeout = 45 * time.Second
	// checksAtOnce keeps the handshakes of a large fleet from slowing each other.
	checksAtOnce = 16
)

// connectAll tries every builder and prints what it found, in the order of the
// policy. It is an error if one of them cannot be used.
func connectAll(ctx context.Context, out io.Writer, builders []policy.Builder) error {
	pool := upstream.NewPool(upstream.Options{})
	pool.Update(builders)
	results := make([]string, len(builders))
	failed := make([]bool, len(builders))
	var group errgroup.Group
	group.SetLimit(checksAtOnce)
	for i := range builders {
		group.Go(func() error {
			report, err := checkOne(ctx, pool, builders[i].Name)
			results[i], failed[i] = reportText(&builders[i], report, err), err != nil
			return nil
		})
	}
	_ = group.Wait() // none of them returns an error
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := pool.Close(ctx)
	if _, writeErr := fmt.Fprintf(out, "\n%s", strings.Join(results, "")); writeErr != nil {
		return writeErr
	}
	if bad := count(failed); bad > 0 {
		return fmt.Errorf("%d of %d builders cannot be used", bad, len(builders))
	}
	return err
}

func checkOne(ctx context.Context, pool *upstream.Pool, name string) (upstream.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return pool.Check(ctx, name)
}

// reportText is what an admin reads about one builder.
func reportText(b *policy.Builder, r upstream.Report, err error) string {
	head := fmt.Sprintf("Builder %s at %s, account %s: ", b.Name, b.Address, b.User)
	if b.Socket != "" {
		head = fmt.Sprintf("Builder %s at %s: ", b.Name, b.Socket)
	}
	if err != nil {
		return head + "cannot be used\n" + faultText(err)
	}
	nix := r.Nix
	if nix == "" {
		nix = "older than 2.7"
	}
	return fmt.Sprintf("%sready\n  %s; Nix %s, protocol %s, trust: %s\n  connected in %s; %s answered after %s\n  %s\n",
		head, r.Server, nix, r.Protocol, r.Trust, milliseconds(r.Connect), r.Command, milliseconds(r.Handshake), loadText(b, r))
}

// loadText says whether the builder's load can be seen.
func loadText(b *policy.Builder, r upstream.Report) string {
	switch {
	case b.Load.Off:
		return "its load is not looked at (load: off)"
	case r.LoadErr != nil:
		return fmt.Sprintf("its load cannot be seen, so it is used by its slots alone: it %v", r.LoadErr)
	}
	return r.Load.String()
}

// faultText puts the hint of an error on a line of its own.
func faultText(err error) string {
	var fault *upstream.Error
	if !errors.As(err, &fault) {
		return fmt.Sprintf("  %v\n", err)
	}
	text := fmt.Sprintf("  %s: %v\n", fault.Kind, fault.Err)
	if fault.Hint != "" {
		text += "  hint: " + fault.Hint + "\n"
	}
	return text
}

func milliseconds(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }

func count(all []bool) int {
	n := 0
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}
