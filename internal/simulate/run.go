package simulate

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Costs are what the ways of placing builds cost beside the builds.
type Costs struct {
	// Connect is how long a client's hook needs for one build, connection and
	// handshake. It does so for one build after another.
	Connect time.Duration
	// Hop is what a middle that speaks the protocol adds to the start of a build.
	Hop time.Duration
	// Poll is after how long Nix tries again when all slots are taken, or when
	// somebody else builds the same.
	Poll time.Duration
	// Luck chooses by how much each connection takes longer or shorter, up to a
	// fifth; 0 means not at all. That little changes where a long build goes, for those who look at
	// nothing but slots: only a mean over several says what they are worth.
	Luck uint64
}

// Measured are the costs that were measured with Nix 2.34 and OpenSSH 10, several
// clients at a time.
var Measured = Costs{Connect: 300 * time.Millisecond, Hop: 170 * time.Millisecond, Poll: 5 * time.Second}

// policy is a way of placing builds.
type policy interface {
	// choose is asked by a client's hook before it connects. It returns the
	// machine to connect to, nil for a middle, or false if all slots are taken.
	choose(c *client, build int) (m *machine, ok bool)
	// connected goes on with a build whose hook was let in by m.
	connected(c *client, build int, m *machine)
}

// run is a trace on its way through a fleet.
type run struct {
	clock
	trace    *Trace
	costs    Costs
	policy   policy
	machines []*machine
	clients  []*client
	luck     *rand.Rand
	inputs   [][]input // by build
	fitting  [][]int   // by build
	paths    int       // how many there are
	failed   error     // why some build cannot end
}

func newRun(t *Trace, costs Costs) *run {
	r := &run{trace: t, costs: costs, luck: rand.New(rand.NewPCG(costs.Luck, 1))}
	sources := map[string]pathID{}
	for i := range t.Builds {
		r.inputs = append(r.inputs, t.inputsOf(i, sources))
		r.fitting = append(r.fitting, t.fitting(&t.Builds[i]))
	}
	r.paths = len(t.Builds) + len(sources)
	for i := range t.Machines {
		r.machines = append(r.machines, &machine{
			Machine: &t.Machines[i], index: i, clock: &r.clock, jobs: map[int]*job{},
			arrives: slices.Repeat([]time.Duration{absent}, r.paths),
		})
	}
	for i := range t.Clients {
		r.clients = append(r.clients, newClient(r, &t.Clients[i], i))
	}
	return r
}

// connect is how long a client's hook needs now.
func (r *run) connect() time.Duration {
	if r.costs.Luck == 0 {
		return r.costs.Connect
	}
	return time.Duration((0.8 + 0.4*r.luck.Float64()) * float64(r.costs.Connect))
}

// inputsOf lists what a build needs; sources has the numbers of those seen.
func (t *Trace) inputsOf(build int, sources map[string]pathID) []input {
	var inputs []input
	b := &t.Builds[build]
	for _, s := range b.Sources {
		id, known := sources[s.Path]
		if !known {
			id = pathID(len(t.Builds) + len(sources))
			sources[s.Path] = id
		}
		inputs = append(inputs, input{id, s.Size})
	}
	for _, dep := range b.Deps {
		inputs = append(inputs, input{pathID(dep), t.Builds[dep].Output})
	}
	return inputs
}

// Result is what became of a trace under one policy.
type Result struct {
	Policy string
	// Bound is the trace's.
	Bound time.Duration
	// Makespan is from the start until the last output is back at its client.
	Makespan time.Duration
	// Completion is the mean of that over all clients.
	Completion time.Duration
	// Bytes is what all machines received.
	Bytes int64
	// Built is how many builds ran.
	Built int
}

// Ratio is the makespan divided by the bound.
func (r Result) Ratio() float64 { return float64(r.Makespan) / float64(r.Bound) }

// finish runs until nothing is left to do.
func (r *run) finish(name string, p policy) (Result, error) {
	r.policy = p
	for _, c := range r.clients {
		c.begin()
	}
	for r.step() {
	}
	return r.result(name)
}

func (r *run) result(name string) (Result, error) {
	res := Result{Policy: name, Bound: r.trace.Bound()}
	var sum time.Duration
	if r.failed != nil {
		return res, r.failed
	}
	for _, c := range r.clients {
		if c.left > 0 {
			return res, fmt.Errorf("%s: %d builds of client %s never ended", name, c.left, c.Name)
		}
		sum += c.finished
		res.Makespan = max(res.Makespan, c.finished)
	}
	res.Completion = sum / time.Duration(max(1, len(r.clients)))
	for _, m := range r.machines {
		res.Bytes += m.received
		res.Built += m.built
	}
	return res, nil
}

// slots is how many there are.
func (r *run) slots() int {
	n := 0
	for _, m := range r.machines {
		n += m.Slots
	}
	return n
}

// least returns the machine of some for which cost is least; of equals the first.
// It returns nil if cost accepts none.
func (r *run) least(machines []int, cost func(*machine) (float64, bool)) *machine {
	var best *machine
	var least float64
	for _, i := range machines {
		c, ok := cost(r.machines[i])
		if ok && (best == nil || c < least) {
			best, least = r.machines[i], c
		}
	}
	return best
}

// carry brings a build's inputs to a machine, builds it there and copies the
// output back, and calls back after each step.
func (r *run) carry(build int, m *machine, on steps) {
	b := &r.trace.Builds[build]
	ready, sent := m.upload(r.inputs[build])
	r.at(ready, func() {
		on.there(sent, seconds(float64(sent)/m.Link))
		m.start(build, m.takes(b), on.began, func() {
			on.built()
			r.after(m.sends(b.Output), on.back)
		})
	})
}

// steps are what happens to a build. Nobody need listen.
type steps struct {
	// transferred says how many bytes were sent and how long that took, waiting for
	// others not counted.
	transferred func(bytes int64, took time.Duration)
	begins      func()
	ends        func()
	returned    func()
}

func (s steps) there(bytes int64, took time.Duration) {
	if s.transferred != nil {
		s.transferred(bytes, took)
	}
}

func (s steps) began() { call(s.begins) }
func (s steps) built() { call(s.ends) }
func (s steps) back()  { call(s.returned) }

func call(f func()) {
	if f != nil {
		f()
	}
}

// dependants lists for each build those of the client that need it.
func dependants(t *Trace, asks []Ask) map[int][]int {
	waiting := map[int][]int{}
	for _, ask := range asks {
		for _, dep := range t.Builds[ask.Build].Deps {
			if !slices.Contains(waiting[dep], ask.Build) {
				waiting[dep] = append(waiting[dep], ask.Build)
			}
		}
	}
	return waiting
}
