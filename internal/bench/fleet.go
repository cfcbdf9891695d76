package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"nixbastion/internal/fleet"
	"nixbastion/internal/simulate"
	"nixbastion/internal/testbed"
)

// Placement is compared on several builders and clients, which are other hosts than
// those of the benches: "bench fleet" runs it.
const fleetWord = "fleet"

// A story is a trace that is carried through real hosts on some ways.
type story struct {
	name  string
	what  string
	trace func(seed uint64) *simulate.Trace
	ways  []string
	// goals are the largest makespans through the proxy: per bound (""), and per that
	// of another way.
	goals []makespanGoal
}

type makespanGoal struct {
	limit float64
	to    string
}

// sampleBound is long beside what connections and transfers take.
const sampleBound = 3 * time.Minute

var stories = []story{
	{
		name:  "mixed",
		what:  "4 clients x 12 builds of 1, 2 and 4 s, 3 builders x 2 slots of speeds 1, 1 and 2",
		trace: fleet.Mixed,
		ways:  fleet.Ways,
		goals: []makespanGoal{{limit: 1.12}},
	},
	{
		name:  "trace",
		what:  "150 derivations that need each other, 4 clients whose wishes overlap, 4 builders of speeds 2, 1, 1 and 0.6",
		trace: func(seed uint64) *simulate.Trace { return fleet.Sample(seed, sampleBound) },
		ways:  []string{fleet.Direct, fleet.Hub, fleet.Proxy}, // HAProxy is not compared with
		goals: []makespanGoal{{limit: 1.25}, {0.8, fleet.Hub}, {0.75, fleet.Direct}},
	},
}

// models are those of internal/simulate that stand for a way.
var models = map[string]string{fleet.Direct: simulate.Plain, fleet.HAProxy: simulate.LeastConnections, fleet.Hub: simulate.Hub}

type fleetOptions struct {
	story  story
	rounds int
	seed   uint64
	ways   []string
}

func parseFleet(args []string, help io.Writer) (o fleetOptions, err error) {
	var name, ways string
	f := flag.NewFlagSet("bench "+fleetWord, flag.ContinueOnError)
	f.SetOutput(help)
	f.StringVar(&name, "story", stories[0].name, "what is compared: "+storyNames())
	f.IntVar(&o.rounds, "rounds", 3, "how often each way runs")
	f.Uint64Var(&o.seed, "seed", 0, "which trace of its kind")
	f.StringVar(&ways, "ways", "", "ways to compare, separated by commas: "+strings.Join(fleet.Ways, ", "))
	if err := f.Parse(args); err != nil {
		return o, err
	}
	i := slices.IndexFunc(stories, func(s story) bool { return s.name == name })
	if i < 0 {
		return o, fmt.Errorf("no story is called %q; there are %s", name, storyNames())
	}
	o.story = stories[i]
	o.ways, err = words("way", ways, fleet.Ways)
	if err == nil && ways == "" {
		o.ways = o.story.ways
	}
	return o, err
}

func storyNames() string {
	var names []string
	for _, s := range stories {
		names = append(names, s.name)
	}
	return strings.Join(names, ", ")
}

// runFleet carries a story through real hosts and prints what came of it.
func runFleet(ctx context.Context, args []string, out, progress io.Writer) (err error) {
	o, err := parseFleet(args, progress)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(progress, nil))
	bed, err := testbed.New(ctx, testbed.Options{Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	trace := o.story.trace(o.seed)
	f, err := fleet.Open(ctx, bed, trace, o.ways...)
	if err != nil {
		return err
	}
	var results []fleet.Result
	for round := range o.rounds {
		for i := range o.ways {
			// Another one begins each round.
			r, err := f.Run(ctx, o.ways[(i+round)%len(o.ways)])
			if err != nil {
				return errors.Join(err, o.print(out, trace, results))
			}
			log.Info("carried", "way", r.Way, "makespan", r.Makespan.Round(100*time.Millisecond).String(), "ratio", fmt.Sprintf("%.2f", r.Ratio()))
			results = append(results, r)
		}
	}
	return o.print(out, trace, results)
}

// print writes the table and the verdicts; an error is a goal that was not reached.
func (o fleetOptions) print(out io.Writer, trace *simulate.Trace, results []fleet.Result) error {
	fmt.Fprintf(out, "%s (seed %d): %d builds wanted, %d different ones, bound %.1f s\n\n",
		o.story.what, o.seed, trace.Wanted(), trace.Distinct(), trace.Bound().Seconds())
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "way\tmakespan s\tper bound\tmodel\tfirst began s\tlast ended s\tclient done s\tbuilds\twaited s\tMB to builders\tmachine busy")
	for _, way := range o.ways {
		if s := summarize(way, results); s.makespan.n > 0 {
			fmt.Fprintf(w, "%s\t%.1f [%.1f .. %.1f]\t%.2f\t%s\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.0f\t%.0f %%\n", way, s.makespan.median, s.makespan.least, s.makespan.most,
				s.makespan.median/trace.Bound().Seconds(), o.model(way), s.first, s.last, s.completion, s.built, s.waited, s.bytes/1e6, 100*s.busy)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return o.judge(out, trace, results)
}

// model is the median ratio of the model that stands for a way.
func (o fleetOptions) model(way string) string {
	const traces = 21
	name, known := models[way]
	if !known {
		return "-"
	}
	n, trace := traces, o.story.trace
	if o.story.name != stories[0].name { // it is the trace of this seed and no other
		n, trace = 1, func(uint64) *simulate.Trace { return o.story.trace(o.seed) }
	}
	spans, err := simulate.Makespans(name, trace, n, simulate.Measured)
	if err != nil {
		return err.Error()
	}
	slices.Sort(spans)
	return fmt.Sprintf("%.2f", spans[len(spans)/2].Seconds()/o.story.trace(o.seed).Bound().Seconds())
}

// fleetSummary has medians of one way.
type fleetSummary struct {
	makespan                                            spread
	first, last, completion, built, waited, bytes, busy float64
}

func summarize(way string, results []fleet.Result) fleetSummary {
	of := func(value func(fleet.Result) float64) spread {
		var all []float64
		for _, r := range results {
			if r.Way == way {
				all = append(all, value(r))
			}
		}
		return spreadOf(all)
	}
	return fleetSummary{
		makespan:   of(func(r fleet.Result) float64 { return r.Makespan.Seconds() }),
		first:      of(func(r fleet.Result) float64 { return r.First.Seconds() }).median,
		last:       of(func(r fleet.Result) float64 { return r.Last.Seconds() }).median,
		completion: of(func(r fleet.Result) float64 { return r.Completion.Seconds() }).median,
		built:      of(func(r fleet.Result) float64 { return float64(r.Built) }).median,
		waited:     of(func(r fleet.Result) float64 { return r.Waited.Seconds() }).median,
		bytes:      of(func(r fleet.Result) float64 { return float64(r.Bytes) }).median,
		busy:       of(func(r fleet.Result) float64 { return r.Busy }).median,
	}
}

func (o fleetOptions) judge(out io.Writer, trace *simulate.Trace, results []fleet.Result) error {
	mine := summarize(fleet.Proxy, results).makespan
	if mine.n == 0 {
		return nil
	}
	var missed []error
	fmt.Fprintln(out)
	for _, g := range o.story.goals {
		other, name := trace.Bound().Seconds(), "bound"
		if g.to != "" {
			other, name = summarize(g.to, results).makespan.median, g.to
		}
		ratio := mine.median / other
		fmt.Fprintf(out, "proxy / %s: %.2f, goal %.2f\n", name, ratio, g.limit)
		if ratio > g.limit {
			missed = append(missed, fmt.Errorf("%s: proxy / %s is %.2f, more than %.2f", o.story.name, name, ratio, g.limit))
		}
	}
	return errors.Join(missed...)
}
