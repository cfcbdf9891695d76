package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Shape says what a synthetic trace is like. The zero value is the common one.
type Shape struct {
	Derivations int           // how many there are to choose from; 0 means 1,500
	Clients     int           // 0 means 8
	Roots       int           // that each client asks for; 0 means 40
	Within      time.Duration // in which all roots are asked for; 0 means a minute
	Link        float64       // bytes per second of each machine; 0 means 110 MB/s
	// Unheard says that nothing was built before, so that nothing can be estimated.
	Unheard bool
	// NoBigParallel leaves out the builds that only one machine may run.
	NoBigParallel bool
}

const (
	linux       = "x86_64-linux"
	bigParallel = "big-parallel"
	mega        = 1_000_000
)

// Numbers of the synthetic trace that no shape changes.
const (
	layers          = 12
	maxDeps         = 2    // of a derivation
	skipLayer       = 0.3  // share of dependencies that are not in the next layer below, and so on
	popularity      = 1.5  // 1 would make all of a layer alike
	medianWork      = 18.0 // seconds
	workSpread      = 1.7  // of the logarithm
	longestWork     = 3 * time.Hour
	bigShare        = 0.015
	medianBig       = 900.0
	bigSpread       = 0.8
	medianOutput    = 0.6 * mega
	outputSpread    = 2.1
	knownShare      = 0.85
	estimateSpread  = 0.4
	smallestClosure = 350 * mega
	largestClosure  = 2200 * mega
	toolchains      = 6
)

// Fleet is that of the synthetic trace: two fast machines, two usual ones, two
// slow ones, and one that runs nothing but what is big-parallel.
func Fleet(link float64) []Machine {
	machine := func(name string, speed float64, slots int, mandatory ...string) Machine {
		return Machine{
			Name: name, Systems: map[string]float64{linux: 1}, Mandatory: mandatory,
			Slots: slots, Speed: speed, Link: link,
		}
	}
	return []Machine{
		machine("fast-1", 2, 8), machine("fast-2", 2, 8),
		machine("usual-1", 1, 12), machine("usual-2", 1, 12),
		machine("slow-1", 0.6, 8), machine("slow-2", 0.6, 8),
		machine("big", 1.5, 3, bigParallel),
	}
}

// Synthetic makes the trace of a seed: derivations in layers, of which each needs
// some of the layers below and one of six toolchains, with times and sizes that
// spread over orders of magnitude, and clients whose wishes overlap.
func Synthetic(seed uint64, shape Shape) *Trace {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0x6e6978)), shape: shape.orUsual()}
	t := &Trace{Machines: Fleet(g.shape.Link)}
	for i := range g.shape.Derivations {
		t.Builds = append(t.Builds, g.build(i))
	}
	for i := range g.shape.Clients {
		t.Clients = append(t.Clients, g.client(t, i))
	}
	return t
}

func (s Shape) orUsual() Shape {
	s.Derivations = orUsual(s.Derivations, 1500)
	s.Clients = orUsual(s.Clients, 8)
	s.Roots = orUsual(s.Roots, 40)
	s.Within = orUsual(s.Within, time.Minute)
	s.Link = orUsual(s.Link, 110*mega)
	return s
}

func orUsual[T int | float64 | time.Duration](x, usual T) T {
	if x == 0 {
		return usual
	}
	return x
}

type generator struct {
	*rand.Rand
	shape Shape
}

func (g *generator) logNormal(median, spread float64) float64 {
	return median * math.Exp(spread*g.NormFloat64())
}

func (g *generator) build(i int) Build {
	b := Build{
		Name: fmt.Sprintf("package%d-1.%d", i, g.IntN(20)), System: linux,
		Work:    min(seconds(g.logNormal(medianWork, workSpread)), longestWork),
		Deps:    g.deps(i),
		Sources: []Source{g.toolchain()},
		Output:  int64(g.logNormal(medianOutput, outputSpread)),
	}
	if big := g.Float64() < bigShare; big && !g.shape.NoBigParallel {
		b.Features = []string{bigParallel}
		b.Work = min(seconds(g.logNormal(medianBig, bigSpread)), longestWork)
	}
	known, wrong := g.Float64() < knownShare, g.logNormal(1, estimateSpread)
	if known && !g.shape.Unheard {
		b.Estimate = time.Duration(float64(b.Work) * wrong)
	}
	return b
}

// layer is that of the i-th derivation; all layers are of one size.
func (g *generator) layer(i int) int { return i * layers / g.shape.Derivations }

// deps chooses from the layers below, mostly the next one, and in each rather
// from the front: some packages are needed by many.
func (g *generator) deps(i int) []int {
	layer := g.layer(i)
	if layer == 0 {
		return nil
	}
	var deps []int
	for range 1 + g.IntN(maxDeps) {
		below := layer - 1
		for below > 0 && g.Float64() < skipLayer {
			below--
		}
		if dep := g.popular(below); !slices.Contains(deps, dep) {
			deps = append(deps, dep)
		}
	}
	slices.Sort(deps)
	return deps
}

func (g *generator) popular(layer int) int {
	size := g.shape.Derivations / layers
	first := (layer*g.shape.Derivations + layers - 1) / layers
	return first + int(float64(size)*math.Pow(g.Float64(), popularity))
}

func (g *generator) toolchain() Source {
	i := g.IntN(toolchains)
	size := smallestClosure * math.Pow(float64(largestClosure)/smallestClosure, float64(i)/(toolchains-1))
	return Source{Path: fmt.Sprintf("toolchain-%d", i+1), Size: int64(size)}
}

// client asks for some roots and all that they need, each as soon as one root
// that needs it is asked for.
func (g *generator) client(t *Trace, i int) Client {
	asked := map[int]time.Duration{}
	for _, root := range g.roots(len(t.Builds)) {
		t.ask(asked, root, time.Duration(g.Int64N(int64(g.shape.Within))))
	}
	c := Client{Name: fmt.Sprintf("client-%d", i+1)}
	for build := range t.Builds {
		if at, wanted := asked[build]; wanted {
			c.Asks = append(c.Asks, Ask{build, at})
		}
	}
	return c
}

func (g *generator) roots(n int) []int {
	var roots []int
	for len(roots) < min(g.shape.Roots, n) {
		if root := g.IntN(n); !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	return roots
}

func (t *Trace) ask(asked map[int]time.Duration, build int, at time.Duration) {
	if before, known := asked[build]; known && before <= at {
		return
	}
	asked[build] = at
	for _, dep := range t.Builds[build].Deps {
		t.ask(asked, dep, at)
	}
}
