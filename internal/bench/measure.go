package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"nixbastion/internal/testbed"
)

// A result is what one bench gave with one client.
type result struct {
	bench  bench
	client string // version of Nix
	// samples by way; a way that could not do it has a reason instead.
	samples map[string][]sample
	reasons map[string]string
}

var nixVersions = []string{testbed.Nix234, testbed.Nix226, testbed.Nix28}

// clientVersions are those that the benches need.
func (o options) clientVersions() []string {
	var versions []string
	for _, t := range o.tasks() {
		if !slices.Contains(versions, t.client) {
			versions = append(versions, t.client)
		}
	}
	return versions
}

// usualClients are those of a bench that is not about one version: all run with
// the first.
func (o options) usualClients() []string {
	if o.client != "" {
		return []string{o.client}
	}
	return []string{testbed.Nix234, testbed.Nix28}
}

// A task is one bench with one client.
type task struct {
	bench  bench
	client string
	// extra says that the client is a further one, which runs slow benches more
	// seldom.
	extra bool
}

// tasks are what the options ask for, in the order of the table.
func (o options) tasks() []task {
	var tasks []task
	for _, b := range allBenches() {
		if !slices.Contains(o.only, b.name) {
			continue
		}
		if b.client != "" {
			tasks = append(tasks, task{b, b.client, false})
			continue
		}
		for i, version := range o.usualClients() {
			if i == 0 || b.extraClients {
				tasks = append(tasks, task{b, version, i > 0})
			}
		}
	}
	return tasks
}

// measureAll gives each task a part of the time that there is. What one leaves
// is the next one's. With an error it returns what was measured before.
func measureAll(ctx context.Context, l *lab, o options, log *slog.Logger) ([]*result, error) {
	tasks := o.tasks()
	limit := newTimeLimit(o.time, tasks)
	var results []*result
	for i, t := range tasks {
		log.Info("measure", "bench", t.bench.name, "client", t.client)
		r, err := l.measure(ctx, t, o.rounds, limit.end(i))
		if err != nil {
			return results, fmt.Errorf("%s with client %s: %w", t.bench.name, t.client, err)
		}
		results = append(results, r)
		log.Info("measured", "bench", t.bench.name, "client", t.client, "verdict", strings.ReplaceAll(strings.Join(r.verdicts(), "; "), "\t", " "))
	}
	return results, nil
}

// A timeLimit says by when a task should end.
type timeLimit struct {
	start time.Time
	whole time.Duration // 0 is no limit
	parts []float64     // of the whole, one per task
}

func newTimeLimit(whole time.Duration, tasks []task) timeLimit {
	l := timeLimit{start: time.Now(), whole: whole}
	var sum float64
	for _, t := range tasks {
		sum += t.bench.share
	}
	for _, t := range tasks {
		l.parts = append(l.parts, t.bench.share/sum)
	}
	return l
}

// end is when task i should begin no further round.
func (l timeLimit) end(i int) time.Time {
	if l.whole == 0 {
		return l.start.AddDate(1, 0, 0)
	}
	var part float64
	for _, p := range l.parts[:i+1] {
		part += p
	}
	return l.start.Add(time.Duration(part * float64(l.whole)))
}

// rareEvery is how many rounds of a slow bench go by until those ways and clients
// take part again that are measured for comparison only.
const rareEvery = 3

// measure runs the rounds of a task: all of them, or as many as begin before
// end, and one at least.
func (l *lab) measure(ctx context.Context, t task, rounds int, end time.Time) (*result, error) {
	r := &result{bench: t.bench, client: t.client, samples: map[string][]sample{}, reasons: map[string]string{}}
	s := &stage{lab: l, bench: t.bench, client: l.clients[t.client], warmed: map[*way]bool{}}
	if err := s.startEmpty(ctx); err != nil {
		return nil, err
	}
	for round := 0; round < rounds && (round == 0 || time.Now().Before(end)); round++ {
		for _, w := range turn(l.ways, round) {
			if w.name == unaudited && !t.bench.comparesWith(w) {
				continue
			}
			rare := t.bench.slow && (t.extra || w.aside() && !t.bench.comparesWith(w))
			if r.reasons[w.name] != "" || rare && round%rareEvery > 0 {
				continue
			}
			if err := l.measureWay(ctx, s, r, w, round); err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				r.reasons[w.name] = err.Error()
			}
		}
	}
	return r, nil
}

// turn begins with another way each round, so that none always runs first.
func turn(ways []*way, round int) []*way {
	n := round % len(ways)
	return append(slices.Clone(ways[n:]), ways[:n]...)
}

// startEmpty makes every bench begin the same, whatever ran before.
func (s *stage) startEmpty(ctx context.Context) error {
	for _, w := range s.ways {
		if err := s.emptyStores(ctx, w); err != nil {
			return err
		}
	}
	if s.bench.prepare == nil {
		return nil
	}
	return s.bench.prepare(ctx, s)
}

func (l *lab) measureWay(ctx context.Context, s *stage, r *result, w *way, round int) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.warmOnce(ctx, w); err != nil {
		return err
	}
	for range max(1, r.bench.repeats) {
		argv, err := r.bench.before(ctx, s, w)
		if err != nil {
			return err
		}
		one, err := l.watch(ctx, s.client, w, argv)
		if err != nil {
			return err
		}
		one.round = round
		r.samples[w.name] = append(r.samples[w.name], one)
	}
	return nil
}

func (s *stage) warmOnce(ctx context.Context, w *way) error {
	if s.warmed[w] {
		return nil
	}
	s.warmed[w] = true
	return s.bench.warm(ctx, s, w)
}

// warmUp uses a way once, untimed: programs are then in the page cache, and the
// middle's own connections to the builder are there, as they are in daily use.
func warmUp(ctx context.Context, s *stage, w *way) error {
	argv, err := s.trivial(ctx, w, 1)
	if err != nil {
		return err
	}
	_, err = s.watch(ctx, s.client, w, argv)
	return err
}
