package route

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// fleet has n builders of four kinds.
func fleet(n int) []Builder {
	var builders []Builder
	for i := range n {
		b := linux(fmt.Sprintf("b%03d", i), 8).fast([]float64{2, 1, 0.6, 1}[i%4])
		if i%4 == 0 {
			b.Features = []string{"kvm"}
		}
		builders = append(builders, b)
	}
	return builders
}

// bench is a router with builders that are all taken and a queue.
type bench struct {
	*Router
	now     time.Time
	running []*Lease
	asked   int
	inputs  []Input
	took    []time.Duration
}

func newBench(builders, inputs int) *bench {
	b := &bench{now: frozen()}
	b.Router = New(Options{Now: func() time.Time { return b.now }, QueueLimit: 20_000})
	b.SetBuilders(fleet(builders))
	for i := range inputs {
		in := Input{b.Intern(fmt.Sprint("/nix/store/", i)), 1 << 20}
		b.inputs = append(b.inputs, in)
		b.NoteHeld(fmt.Sprintf("b%03d", i%builders), in.ID)
	}
	return b
}

// request is the next one: of 40 principals, 500 jobs of very different durations.
func (b *bench) request() Request {
	b.asked++
	req := askLinux()
	req.Principal = fmt.Sprint("p", b.asked%40)
	req.Job = fmt.Sprint("job", b.asked%500)
	req.Inputs = b.inputs
	return req
}

func (b *bench) ask() {
	if _, err := b.Submit(b.request(), func(l *Lease, err error) {
		if err != nil {
			panic(err)
		}
		l.Began()
		b.running = append(b.running, l)
	}); err != nil {
		panic(err)
	}
}

// learn has every job built once.
func (b *bench) learn() {
	for i := range 500 {
		b.estimates.learn(fmt.Sprint("job", i), "x86_64-linux", "", float64(1+i*i%997))
	}
}

// timed notes how long something took.
func (b *bench) timed(f func()) {
	began := time.Now()
	f()
	b.took = append(b.took, time.Since(began))
}

func (b *bench) report(t *testing.B) {
	slices.Sort(b.took)
	t.ReportMetric(float64(b.took[len(b.took)/2].Microseconds()), "p50-us")
	t.ReportMetric(float64(b.took[len(b.took)*99/100].Microseconds()), "p99-us")
}

// BenchmarkDecision is one step with 200 builders, 10,000 requests that wait and 2,000
// inputs each: a build that ends, or one that comes, whose inputs were weighed
// before.
func BenchmarkDecision(t *testing.B) {
	for _, step := range []string{"completion", "acquire"} {
		t.Run(step, func(t *testing.B) {
			b := newBench(200, 2000)
			b.learn()
			for b.waiting < 10_000 {
				b.ask()
			}
			for t.Loop() {
				b.now = b.now.Add(100 * time.Millisecond)
				if step == "completion" {
					l := b.running[0]
					b.running = b.running[1:]
					b.timed(func() { l.Built() })
					b.ask()
					continue
				}
				w := b.prepare(b.request())
				w.ended = func() {}
				b.timed(func() {
					b.lock()
					b.enqueue(w)
					b.settle()
					b.unlock()
				})
				b.leave(w)
			}
			b.report(t)
		})
	}
}

// BenchmarkWeigh is what comes before: 2,000 inputs at 200 builders.
func BenchmarkWeigh(t *testing.B) {
	b := newBench(200, 2000)
	for t.Loop() {
		b.timed(func() { b.prepare(b.request()) })
	}
	b.report(t)
}

// BenchmarkIdle is Acquire and Release with nobody else, on 50 builders.
func BenchmarkIdle(t *testing.B) {
	r := New(Options{})
	r.SetBuilders(fleet(50))
	for t.Loop() {
		lease, err := r.Acquire(t.Context(), askLinux("kvm"), nil)
		if err != nil {
			t.Fatal(err)
		}
		lease.Release()
	}
}

// BenchmarkReload replaces 50 builders while 10,000 requests of 40 principals wait.
func BenchmarkReload(t *testing.B) {
	b := newBench(50, 0)
	for b.waiting < 10_000 {
		b.ask()
	}
	for t.Loop() {
		b.SetBuilders(fleet(50))
	}
}
