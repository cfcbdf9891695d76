package main

import (
	"cmp"
	"context"
	"slices"
	"time"

	"nixbastion/internal/testbed"
)

// A bench is one thing that is measured over every way.
type bench struct {
	name  string // for -only
	title string
	// what says exactly what is timed, in the words of the table's legend.
	what string
	// repeats is how often each way runs it per round; 0 is once.
	repeats int
	// share is about how many seconds all rounds take on a quiet machine of two
	// cores: what the time limit is divided by.
	share float64
	// slow says that a run takes seconds: ways that are there for comparison only
	// run it in few rounds, and so do extra clients; see rareEvery.
	slow bool
	// extraClients says that it runs with more client versions by default.
	extraClients bool
	// client is the version that it is about; "" is any.
	client string
	// bytes, or paths by client version, is how much a run moves, for a rate.
	bytes int64
	paths func(client string) int
	goals []goal
	// decoy says that the proxy must have a second builder, beside which it runs.
	decoy bool

	// prepare is called once, before all rounds; nil is nothing to do.
	prepare func(ctx context.Context, s *stage) error
	// warm uses a way before its first run.
	warm func(ctx context.Context, s *stage, w *way) error
	// before is called before each run over w and is not timed. It returns the
	// command to time.
	before func(ctx context.Context, s *stage, w *way) ([]string, error)
}

// A stage is a bench with one client.
type stage struct {
	*lab
	bench  bench
	client *testbed.Host
	// subject is what prepare made: a store path that before's commands fetch.
	subject string
	// warmed are the ways that this client has used.
	warmed map[*way]bool
}

// A goal is what a bench should reach through the proxy.
type goal struct {
	// limit is the largest ratio of times, proxy to another way.
	limit float64
	// rate, instead, is the smallest ratio of rates.
	rate float64
	// cpu, instead, is the largest ratio of CPU times: what the proxy takes, to what
	// the builder takes in the other way.
	cpu float64
	// to names the other way; "" is direct.
	to string
}

func (g goal) other() string { return cmp.Or(g.to, direct) }

// comparesWith reports whether a way is what the proxy is compared with.
func (b bench) comparesWith(w *way) bool {
	return slices.ContainsFunc(b.goals, func(g goal) bool { return g.other() == w.name })
}

// all benches, in the order of the table.
func allBenches() []bench {
	return []bench{
		ping(), oneBuild(), fiftyBuilds(), bigIn(), bigMisled(), smallIn(), bigOut(), bigDiscarded(), filesDiscarded(), smallOut(), connectedOut(), absent(),
		jumpUp(), jumpDown(),
	}
}

func benchNames() []string {
	var names []string
	for _, b := range allBenches() {
		names = append(names, b.name)
	}
	return names
}

// timeout is when a run counts as hung.
const timeout = 5 * time.Minute
