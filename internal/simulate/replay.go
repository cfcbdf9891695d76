package simulate

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"nixbastion/internal/tracefile"
)

// Bounds of what is read. All of it is kept in memory, at most about a gigabyte.
const (
	maxReplayed = 100_000   // lines
	maxInputs   = 5_000_000 // of all builds together
)

// atOnce is how soon after a dependency's reply a build is asked for if the client
// was waiting for that.
const atOnce = 10 * time.Second

// defaultLink is the link of a machine of which none is known, in bytes a second.
const defaultLink = 110 * mega

// Read makes a trace of files, in their order, for the machines given, or with
// none for those of the first line. Lines with the same drv and domain are wishes
// for one build; the first counts for all but who asked and when.
//
// A build that was asked for as soon as the last of its dependencies came back
// counts as wanted since these were: its client had been waiting.
func Read(files []*tracefile.Reader, machines []Machine) (*Trace, error) {
	p := &replay{builds: map[string]*replayed{}, outputs: map[string]*replayed{}, strings: map[string]string{}}
	for _, file := range files {
		if err := p.read(file); err != nil {
			return nil, err
		}
	}
	t := &Trace{Machines: machines}
	if len(machines) == 0 {
		t.Machines = MachinesOf(p.fleet)
	}
	return t, p.fill(t)
}

// MachinesOf are the machines of a fleet; nil has none.
func MachinesOf(fleet *tracefile.Fleet) []Machine {
	if fleet == nil {
		return nil
	}
	var machines []Machine
	for _, b := range fleet.Builders {
		machines = append(machines, Machine{
			Name: b.Name, Systems: b.Systems, Features: b.Features, Mandatory: b.MandatoryFeatures, Domains: b.Domains,
			Slots: orUsual(b.MaxJobs, 1), Speed: orUsual(b.SpeedFactor, 1), Link: orUsual(b.Link, defaultLink),
		})
	}
	return machines
}

type replay struct {
	fleet  *tracefile.Fleet
	order  []*replayed
	builds map[string]*replayed // by domain and drv
	// outputs are by domain and path.
	outputs map[string]*replayed
	wishes  []wish
	inputs  int
	strings map[string]string // each once
}

// replayed is a distinct build.
type replayed struct {
	tracefile.Build
	place error // where it stands, for errors
	deps  []*replayed
	index int // in the trace, once it is there
}

type wish struct {
	principal    string
	build        *replayed
	asked, ended time.Time
}

func (p *replay) read(file *tracefile.Reader) error {
	for {
		build, fleet, err := file.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case fleet != nil && p.fleet == nil:
			p.fleet = fleet
		case build != nil:
			if err := p.add(build, file); err != nil {
				return file.Place(err)
			}
		}
	}
}

func (p *replay) add(b *tracefile.Build, file *tracefile.Reader) error {
	if len(p.wishes) == maxReplayed {
		return fmt.Errorf("more than %d builds are too many to simulate", maxReplayed)
	}
	key := scoped(b.Domain, b.Drv)
	known := p.builds[key]
	if known == nil {
		if p.inputs += len(b.Inputs); p.inputs > maxInputs {
			return fmt.Errorf("more than %d inputs of all builds are too many to simulate", maxInputs)
		}
		known = &replayed{Build: *b, place: file.Place(errPlace)}
		p.builds[key] = known
		p.order = append(p.order, known)
		p.intern(known)
	}
	p.wishes = append(p.wishes, wish{scoped(b.Domain, b.Principal), known, b.Asked, b.Ended})
	return nil
}

var errPlace = errors.New("the builds that it needs need it too")

func scoped(domain, name string) string { return domain + "\x00" + name }

// intern keeps one copy of each text, since most inputs are those of many builds.
func (p *replay) intern(b *replayed) {
	one := func(s string) string {
		if known, ok := p.strings[s]; ok {
			return known
		}
		p.strings[s] = s
		return s
	}
	for i := range b.Inputs {
		b.Inputs[i].Path = one(b.Inputs[i].Path)
	}
	for _, out := range b.Outputs {
		p.outputs[scoped(b.Domain, out.Path)] = b
	}
}

func (p *replay) fill(t *Trace) error {
	switch {
	case len(p.order) == 0:
		return errors.New("no builds are in the trace")
	case len(t.Machines) == 0:
		return errors.New("no builders are known: give a policy file, or a first line with builders")
	}
	for _, b := range p.order {
		p.link(b)
	}
	if err := p.number(t); err != nil {
		return err
	}
	p.addClients(t)
	return t.check()
}

// link finds the builds that b needs.
func (p *replay) link(b *replayed) {
	sources := b.Inputs[:0]
	for _, in := range b.Inputs {
		dep := p.outputs[scoped(b.Domain, in.Path)]
		if in.Drv != "" {
			dep = p.builds[scoped(b.Domain, in.Drv)]
		}
		switch {
		case dep == nil && in.Path != "":
			sources = append(sources, in)
		case dep != nil && dep != b && !slices.Contains(b.deps, dep):
			b.deps = append(b.deps, dep)
		}
	}
	b.Inputs = sources
}

// number puts the builds into the trace, each after those that it needs.
func (p *replay) number(t *Trace) error {
	missing := map[*replayed]int{}
	needed := map[*replayed][]*replayed{}
	var ready []*replayed
	for _, b := range p.order {
		missing[b] = len(b.deps)
		for _, dep := range b.deps {
			needed[dep] = append(needed[dep], b)
		}
		if len(b.deps) == 0 {
			ready = append(ready, b)
		}
	}
	for len(ready) > 0 {
		b := ready[0]
		ready = ready[1:]
		b.index = len(t.Builds)
		t.Builds = append(t.Builds, b.build())
		for _, next := range needed[b] {
			if missing[next]--; missing[next] == 0 {
				ready = append(ready, next)
			}
		}
	}
	for _, b := range p.order {
		if missing[b] > 0 {
			return b.place
		}
	}
	return nil
}

// build is b as the trace has it; what it needs was numbered before.
func (b *replayed) build() Build {
	out := Build{
		Name: b.Name, System: b.System, Features: b.Features, Domain: orDefault(b.Domain),
		Work: max(seconds(b.Seconds), time.Millisecond),
	}
	for _, dep := range b.deps {
		out.Deps = append(out.Deps, dep.index)
	}
	for _, in := range b.Inputs {
		out.Sources = append(out.Sources, Source{in.Path, in.Size})
	}
	for _, o := range b.Outputs {
		out.Output += o.Size
	}
	return out
}

// orDefault is the domain of a build that names none.
func orDefault(domain string) string { return cmp.Or(domain, "default") }

// addClients makes a client of each principal, with each of its builds once, as it
// was asked for first.
func (p *replay) addClients(t *Trace) {
	slices.SortStableFunc(p.wishes, func(a, b wish) int { return a.asked.Compare(b.asked) })
	start := p.wishes[0].asked
	first := map[string]map[int]wish{}
	var names []string
	for _, w := range p.wishes {
		if first[w.principal] == nil {
			first[w.principal] = map[int]wish{}
			names = append(names, w.principal)
		}
		if _, known := first[w.principal][w.build.index]; !known {
			first[w.principal][w.build.index] = w
		}
	}
	for _, name := range names {
		_, principal, _ := strings.Cut(name, "\x00")
		t.Clients = append(t.Clients, Client{Name: principal, Asks: t.asks(first[name], start)})
	}
}

func (t *Trace) asks(wishes map[int]wish, start time.Time) []Ask {
	var asks []Ask
	since := map[int]time.Duration{}
	for build := range t.Builds {
		w, wanted := wishes[build]
		if !wanted {
			continue
		}
		since[build] = w.asked.Sub(start)
		if at, waited := t.waited(w, wishes, since); waited {
			since[build] = min(at, since[build])
		}
		asks = append(asks, Ask{build, since[build]})
	}
	return asks
}

// waited reports whether w was asked for as soon as its dependencies were there,
// and since when they were wanted.
func (t *Trace) waited(w wish, wishes map[int]wish, since map[int]time.Duration) (at time.Duration, waited bool) {
	var last time.Time
	for _, dep := range t.Builds[w.build.index].Deps {
		if d, wanted := wishes[dep]; wanted && !d.ended.IsZero() {
			at = max(at, since[dep])
			if d.ended.After(last) {
				last = d.ended
			}
		}
	}
	gap := w.asked.Sub(last)
	return at, !last.IsZero() && gap >= 0 && gap <= atOnce
}
