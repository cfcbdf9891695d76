package main

import (
	"context"
	"fmt"
	"strings"

	"nixbastion/internal/testbed"
)

func oneBuild() bench {
	return bench{
		name: "build", share: 30, title: "one trivial build",
		what:    "`nix-build` of a derivation never seen before, without inputs, whose output is one small file; with evaluation and fetching",
		repeats: 3, extraClients: true,
		goals: []goal{{limit: 0.8}, {limit: 1.05, to: unaudited}},
		warm:  warmUp,
		before: func(ctx context.Context, s *stage, w *way) ([]string, error) {
			return s.trivial(ctx, w, 1)
		},
	}
}

func fiftyBuilds() bench {
	return bench{
		name: "builds", share: 115, title: fmt.Sprintf("50 trivial builds, %d jobs", jobs),
		what: fmt.Sprintf("`nix-build` of fifty such trivial derivations at once, %d jobs in the machines file, on the builder and in the proxy's policy", jobs),
		slow: true, extraClients: true,
		goals: []goal{{limit: 0.6}},
		warm:  warmUp,
		before: func(ctx context.Context, s *stage, w *way) ([]string, error) {
			return s.trivial(ctx, w, 50)
		},
	}
}

const expressionFile = "/root/bench.nix"

// trivial writes n derivations that nobody has seen and returns the command
// that builds them.
func (s *stage) trivial(ctx context.Context, w *way, n int) ([]string, error) {
	text := testbed.Expression(testbed.Numbered(n, testbed.Derivation{Name: s.serial.next() + "x"})...)
	if err := s.client.WriteFile(ctx, expressionFile, []byte(text)); err != nil {
		return nil, err
	}
	return []string{"nix-build", "--no-out-link", "--option", "builders", w.builders, expressionFile}, nil
}

// instantiate registers a derivation whose inputs are paths that lie in the
// client's store, so that the time to evaluate it is not part of the run.
func (s *stage) instantiate(ctx context.Context, d testbed.Derivation, inputs []string) (drv string, err error) {
	for _, path := range inputs {
		d.Sources = append(d.Sources, fmt.Sprintf("(builtins.storePath %q)", path))
	}
	if err := s.client.WriteFile(ctx, expressionFile, []byte(testbed.Expression(d))); err != nil {
		return "", err
	}
	drv, err = shell(ctx, s.client, "nix-instantiate "+expressionFile)
	return strings.TrimSpace(drv), err
}

func realise(w *way, drv string) []string {
	return []string{"nix-store", "--realise", "--option", "builders", w.builders, drv}
}
