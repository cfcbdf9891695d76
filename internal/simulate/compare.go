package simulate

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// ways are the policies, in the order of the table.
var ways = []struct {
	name string
	make func(*run) policy
}{
	{Plain, func(r *run) policy { return plain{r} }},
	{RoundRobin, roundRobin},
	{LeastConnections, leastConnections},
	{Hub, newHub},
	{Ours, newOurs},
	{Clairvoyant, newClairvoyant},
}

// The names of the policies.
const (
	Plain            = "clients that list all builders"
	RoundRobin       = "round robin of connections"
	LeastConnections = "least connections"
	Hub              = "hub nix-daemon"
	Ours             = "nixbastion"
	Clairvoyant      = "clairvoyant, for comparison"
)

// Compare carries a trace through under every policy, as Lucky does.
func Compare(t *Trace, costs Costs, lucks int) ([]Result, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	var results []Result
	for _, way := range ways {
		res, err := Lucky(way.name, t, costs, lucks)
		if err != nil {
			return nil, err
		}
		results = append(results, res)
	}
	return results, nil
}

func runPolicy(name string, t *Trace, costs Costs) (Result, error) {
	for _, way := range ways {
		if way.name == name {
			r := newRun(t, costs)
			return r.finish(name, way.make(r))
		}
	}
	return Result{}, fmt.Errorf("there is no policy %q", name)
}

// Lucky carries a trace through under one policy, once for each of some lucks, and
// returns the mean.
func Lucky(policy string, t *Trace, costs Costs, lucks int) (Result, error) {
	var mean Result
	n := int64(lucks)
	for luck := range n {
		costs.Luck = uint64(luck + 1)
		res, err := runPolicy(policy, t, costs)
		if err != nil {
			return res, err
		}
		mean.Policy, mean.Bound = res.Policy, res.Bound
		mean.Makespan += res.Makespan / time.Duration(n)
		mean.Completion += res.Completion / time.Duration(n)
		mean.Bytes += res.Bytes / n
		mean.Built += res.Built
	}
	mean.Built /= lucks
	return mean, nil
}

// Summary is what became of several traces under one policy.
type Summary struct {
	Policy string
	// Ratio is the mean of makespan / bound, and Worst the highest.
	Ratio, Worst float64
	// The rest are means.
	Makespan, Completion time.Duration
	Bytes, Built         float64
}

// Summarize takes the results of several traces together.
func Summarize(traces [][]Result) []Summary {
	var sums []Summary
	n := float64(len(traces))
	for i := range traces[0] {
		s := Summary{Policy: traces[0][i].Policy}
		for _, results := range traces {
			res := results[i]
			s.Ratio += res.Ratio() / n
			s.Worst = max(s.Worst, res.Ratio())
			s.Makespan += time.Duration(float64(res.Makespan) / n)
			s.Completion += time.Duration(float64(res.Completion) / n)
			s.Bytes += float64(res.Bytes) / n
			s.Built += float64(res.Built) / n
		}
		sums = append(sums, s)
	}
	return sums
}

// WriteTable prints summaries, one policy a line.
func WriteTable(out io.Writer, sums []Summary) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "makespan s\tper bound\tworst\tclient done s\tGB to builders\tbuilds\t  policy")
	for _, s := range sums {
		fmt.Fprintf(w, "%.1f\t%.3f\t%.3f\t%.1f\t%.1f\t%.0f\t  %s\n",
			s.Makespan.Seconds(), s.Ratio, s.Worst, s.Completion.Seconds(), s.Bytes/1e9, s.Built, s.Policy)
	}
	return w.Flush()
}
