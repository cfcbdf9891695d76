package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"nixbastion/internal/simulate"
	"nixbastion/internal/tracefile"
	"nixbastion/policy"
)

// lucks are over how many runs the table is the mean: by chance alone the makespan of
// a hub moves by a tenth.
const lucks = 3

type simulateCmd struct {
	Trace  []string `arg:"" optional:"" help:"Files of builds that were wanted, in order; none simulates a synthetic trace." type:"existingfile"`
	Config string   `help:"Take the builders from this policy file." type:"path" placeholder:"FILE"`
	Link   float64  `help:"What each builder of the policy file can receive, in MB/s." default:"110"`
	Seed   uint64   `help:"Which synthetic trace." default:"1"`
}

// Help is what --help adds. kong calls it.
func (simulateCmd) Help() string {
	return `Prints how long the builds of a trace would have taken, and what they would have moved, if this proxy had placed them, and beside it what models of other ways make of the same: clients that list all builders themselves, balancers of connections, and a hub nix-daemon. Nothing is built.

The proxy writes such a trace to the file named by scheduling.history. Each line is a JSON object, one for each build that a principal wanted:

  {"asked":"2026-01-30T12:00:00.5Z","principal":"anna","drv":"/nix/store/HASH-hello-2.12.drv","name":"hello-2.12","system":"x86_64-linux","features":["kvm"],"seconds":12.5,"inputs":[{"path":"/nix/store/HASH-gcc-14","size":250000000},{"drv":"/nix/store/HASH-libidn2-2.3.drv"}],"outputs":[{"path":"/nix/store/HASH-hello-2.12","size":90000}]}

asked, principal, drv, name, system and seconds are required. seconds are those of a builder of speed 1; sizes are of NARs, in bytes. An input that is an output of another line, by its path or as drv, has to be built before. "ended", a time, says when the reply came: a build asked for within ten seconds after the last of its inputs counts as wanted when they were. "domain" limits it to builders of that domain. Lines with the same drv are wishes for one build.

A first line can say which builders there are, if no policy file does:

  {"builders":[{"name":"b1","systems":{"x86_64-linux":1},"features":["kvm"],"mandatory_features":[],"max_jobs":8,"speed_factor":1,"link":110000000,"domains":["default"]}]}

At most 100,000 builds with 5,000,000 inputs are read. The bound is what no placement can beat, counted from when builds were asked for: all work divided by all slots that can do it, or the longest chain of builds, whichever is more. All numbers are means of three runs, in which connections take a little longer or shorter.`
}

// Run prints the table.
func (c simulateCmd) Run(out io.Writer) error {
	trace, err := c.trace()
	if err != nil {
		return err
	}
	results, err := simulate.Compare(trace, simulate.Measured, lucks)
	if err != nil {
		return err
	}
	bound := trace.BoundAsAsked() // in a history of days most of the time nothing was asked for
	for i := range results {
		results[i].Bound = bound
	}
	fmt.Fprintf(out, "%s wanted by %s, %d different ones, on %s. Bound: %.1f s\n\n", policy.CountOf(trace.Wanted(), "build"),
		policy.CountOf(len(trace.Clients), "client"), trace.Distinct(), policy.CountOf(len(trace.Machines), "builder"), bound.Seconds())
	return simulate.WriteTable(out, simulate.Summarize([][]simulate.Result{results}))
}

func (c simulateCmd) trace() (*simulate.Trace, error) {
	switch {
	case len(c.Trace) > 0:
		return c.read()
	case c.Config != "":
		return nil, errors.New("the synthetic trace has builders of its own: name a trace to simulate with those of a policy file")
	default:
		return simulate.Synthetic(c.Seed, simulate.Shape{}), nil
	}
}

func (c simulateCmd) read() (*simulate.Trace, error) {
	machines, err := c.machines()
	if err != nil {
		return nil, err
	}
	var readers []*tracefile.Reader
	for _, name := range c.Trace {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		readers = append(readers, tracefile.NewReader(name, file))
	}
	return simulate.Read(readers, machines)
}

// machines are those of the policy file, or none if none is named.
func (c simulateCmd) machines() ([]simulate.Machine, error) {
	switch {
	case c.Config == "":
		return nil, nil
	case c.Link <= 0:
		return nil, fmt.Errorf("--link is %v, expected more than 0", c.Link)
	}
	pol, err := policy.Load(c.Config)
	if err != nil {
		return nil, reportMistakes(err)
	}
	var machines []simulate.Machine
	for _, b := range pol.Builders {
		machines = append(machines, simulate.Machine{
			Name: b.Name, Systems: b.Systems, Features: b.Features, Mandatory: b.MandatoryFeatures, Domains: b.Domains,
			Slots: b.MaxJobs, Speed: b.SpeedFactor, Link: c.Link * 1e6,
		})
	}
	return machines, nil
}
