package fleet

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"nixbastion/internal/simulate"
	"nixbastion/internal/testbed"
)

// Result is what became of a trace on one way.
type Result struct {
	Way string
	// Bound is the trace's: no placement can be quicker.
	Bound time.Duration
	// Makespan is from the start until the last client has all that it asked for.
	Makespan time.Duration
	// Completion is the mean of that over the clients.
	Completion time.Duration
	// First is when the first build began, and Last when the last one ended: before and
	// after, only connections and copies take time.
	First, Last time.Duration
	// Built is how many builds ran.
	Built int
	// Waited is for how long builds that had been sent to a builder waited there for a
	// slot, all together: how much builders were overloaded.
	Waited time.Duration
	// Bytes is what all builders received.
	Bytes int64
	// Busy is the share of the machine's processors that was used: near 1 the machine
	// is what was measured.
	Busy float64
}

// Ratio is the makespan divided by the bound.
func (r Result) Ratio() float64 { return float64(r.Makespan) / float64(r.Bound) }

// Run has all clients ask for what they want on one way, which Open must have been
// given, and returns when they have it. ctx bounds it.
func (f *Fleet) Run(ctx context.Context, way string) (Result, error) {
	f.rounds++
	if err := f.empty(ctx); err != nil {
		return Result{}, err
	}
	err := onAll(f.clients, func(i int, h *testbed.Host) error { return f.instantiate(ctx, way, i, h) })
	if err != nil {
		return Result{}, err
	}
	before, err := f.look(ctx)
	if err != nil {
		return Result{}, err
	}
	began := time.Now()
	took, err := f.realise(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", way, err)
	}
	after, err := f.look(ctx)
	if err != nil {
		return Result{}, err
	}
	r := f.result(way, took, before, after)
	r.count(began, after.since(before))
	return r, nil
}

// instantiate prepares a client: what it evaluates is not part of the run.
func (f *Fleet) instantiate(ctx context.Context, way string, client int, h *testbed.Host) error {
	var all []testbed.Derivation
	for _, ask := range f.trace.Clients[client].Asks {
		all = append(all, f.derivation(&f.trace.Builds[ask.Build]))
	}
	if err := h.SetMachines(ctx, f.machines(way, client)...); err != nil {
		return err
	}
	if err := h.WriteFile(ctx, "/root/trace.nix", []byte(testbed.Expression(all...))); err != nil {
		return err
	}
	return shell(ctx, h, "nix-instantiate --quiet /root/trace.nix >/root/trace.drvs 2>/root/trace.err")
}

// derivation makes a real one of a build. Rounds differ in an attribute alone, as
// names are what durations are learned by.
func (f *Fleet) derivation(b *simulate.Build) testbed.Derivation {
	d := testbed.Derivation{
		Name: attribute(b.Name), System: b.System, RequiredFeatures: b.Features, Work: b.Work, OutputSize: max(b.Output, 1),
		Attributes: map[string]string{"round": strconv.Quote(strconv.Itoa(f.rounds))},
	}
	for _, dep := range b.Deps {
		d.Inputs = append(d.Inputs, attribute(f.trace.Builds[dep].Name))
	}
	for _, s := range b.Sources {
		d.Sources = append(d.Sources, sourceDir+"/"+s.Path)
	}
	return d
}

// attribute makes a name fit to be one in the Nix language.
func attribute(name string) string { return strings.ReplaceAll(name, ".", "_") }

// realise has all clients build at once and returns when each had all.
func (f *Fleet) realise(ctx context.Context) ([]time.Duration, error) {
	took := make([]time.Duration, len(f.clients))
	began := time.Now()
	err := onAll(f.clients, func(i int, h *testbed.Host) error {
		err := shell(ctx, h, "nix-store --realise $(cat /root/trace.drvs) >/root/trace.log 2>&1 || { tail -n 40 /root/trace.log >&2; exit 1; }")
		took[i] = time.Since(began)
		return err
	})
	return took, err
}

func (f *Fleet) result(way string, took []time.Duration, before, after sight) Result {
	r := Result{Way: way, Bound: f.trace.Bound(), Bytes: after.bytes - before.bytes, Busy: after.busySince(before)}
	for _, t := range took {
		r.Makespan = max(r.Makespan, t)
		r.Completion += t / time.Duration(len(took))
	}
	return r
}

// count notes what builders wrote down of the builds of a run.
func (r *Result) count(began time.Time, records []testbed.BuildRecord) {
	for i, b := range records {
		r.Built++
		r.Waited += b.Started.Sub(b.Arrived)
		if first := b.Started.Sub(began); i == 0 || first < r.First {
			r.First = first
		}
		r.Last = max(r.Last, b.Done.Sub(began))
	}
}
