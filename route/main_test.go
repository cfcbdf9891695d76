package route

import (
	"context"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// linux is a plain builder of the domain "d" with jobs slots.
func linux(name string, jobs int) Builder {
	return Builder{Name: name, Systems: map[string]float64{"x86_64-linux": 1}, MaxJobs: jobs, Domains: []string{"d"}}
}

// arm is one of another system.
func arm(name string, jobs int) Builder {
	return Builder{Name: name, Systems: map[string]float64{"aarch64-linux": 1}, MaxJobs: jobs, Domains: []string{"d"}}
}

func (b Builder) with(features ...string) Builder {
	b.Features = features
	return b
}

func (b Builder) only(mandatory ...string) Builder {
	b.MandatoryFeatures = mandatory
	return b
}

func (b Builder) fast(factor float64) Builder {
	b.SpeedFactor = factor
	return b
}

// ask is a request of "alice" in the domain "d".
func ask(system string, features ...string) Request {
	return Request{Asker: Asker{Principal: "alice"}, Domain: "d", System: system, Features: features}
}

func askLinux(features ...string) Request { return ask("x86_64-linux", features...) }

func newRouter(builders ...Builder) *Router {
	r := New(Options{})
	r.SetBuilders(builders)
	return r
}

// take acquires what must be free.
func take(t *testing.T, r *Router, req Request) *Lease {
	t.Helper()
	lease, err := r.Acquire(context.Background(), req, func(w Waiting) {
		t.Errorf("had to wait: %s", w)
	})
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// busy is how many slots of a builder are taken, -1 if it is not known.
func busy(r *Router, builder string) int {
	for _, b := range r.Status().Builders {
		if b.Name == builder {
			return b.Busy
		}
	}
	return -1
}
