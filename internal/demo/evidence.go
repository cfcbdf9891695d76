package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// An output is what a build of demo.nix wrote: by itself, on the machine where
// it ran.
type output struct{ attr, host, number string }

var outputLine = regexp.MustCompile(`^` + greeting + ` from ([a-z]+): built on ([a-z0-9-]+), number ([0-9a-f]{8})$`)

// readOutputs takes apart the outputs of targets, in their order, and fails if
// one was made on another machine than it should.
func readOutputs(text string, targets []target) ([]output, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != len(targets) {
		return nil, fmt.Errorf("%d outputs where there should be %d:\n%s", len(lines), len(targets), text)
	}
	var all []output
	for i, t := range targets {
		found := outputLine.FindStringSubmatch(lines[i])
		if found == nil || found[1] != t.attr {
			return nil, fmt.Errorf("the output of %s holds %q", t.attr, lines[i])
		}
		if found[2] != t.builder {
			return nil, fmt.Errorf("%s was built on %s and not on %s", t.attr, found[2], t.builder)
		}
		all = append(all, output{found[1], found[2], found[3]})
	}
	return all, nil
}

// evidence is what a builder's own Nix wrote down about each build that it ever
// began, by builder: the log files, with the time of their last change. A build
// that is run again has a new time.
type evidence map[string][]string

func (s *stage) evidence(ctx context.Context) (evidence, error) {
	found := evidence{}
	for _, b := range s.builders {
		res, err := b.Shell(ctx, `mkdir -p /nix/var/log/nix/drvs && find /nix/var/log/nix/drvs -type f -printf '%f %T@\n' | sort`)
		if err != nil || res.Status != 0 {
			return nil, errors.Join(err, fmt.Errorf("read build logs of %s: status %d %s", b.Name(), res.Status, res.Stderr))
		}
		found[b.Name()] = slices.Collect(strings.Lines(res.Stdout))
	}
	return found, nil
}

// nothingSince fails if a builder has begun a build since the evidence.
func (s *stage) nothingSince(ctx context.Context, before evidence) error {
	now, err := s.evidence(ctx)
	if err != nil {
		return err
	}
	return sameLogs(before, now)
}

func sameLogs(before, now evidence) error {
	for host, files := range now {
		if !slices.Equal(files, before[host]) {
			return fmt.Errorf("%s has built something: its build logs are\n%v where they were\n%v", host, files, before[host])
		}
	}
	return nil
}

// checkPlaces fails unless each builder's own Nix says that it built exactly
// what the outputs say was built there.
func (s *stage) checkPlaces(ctx context.Context, built []output) error {
	logs, err := s.evidence(ctx)
	if err != nil {
		return err
	}
	for host, files := range logs {
		var here []output
		for _, o := range built {
			if o.host == host {
				here = append(here, o)
			}
		}
		if err := samePlaces(files, here); err != nil {
			return fmt.Errorf("build logs of %s: %w", host, err)
		}
	}
	return nil
}

func samePlaces(files []string, built []output) error {
	if len(files) != len(built) {
		return fmt.Errorf("%v, where %v was built", files, built)
	}
	for _, o := range built {
		has := func(file string) bool { return strings.Contains(file, "-"+o.attr+".drv") }
		if !slices.ContainsFunc(files, has) {
			return fmt.Errorf("%v, none of %s", files, o.attr)
		}
	}
	return nil
}
