package route

import (
	"fmt"
	"testing"
)

// fiftyBuilders has four kinds of them.
func fiftyBuilders() []Builder {
	var builders []Builder
	for i := range 50 {
		b := linux(fmt.Sprintf("b%02d", i), 4).fast(float64(1 + i%3))
		if i%4 == 0 {
			b.Features = []string{"kvm"}
		}
		builders = append(builders, b)
	}
	return builders
}

func fill(b *testing.B, r *Router) []*Lease {
	var leases []*Lease
	for {
		w, err := r.enter(askLinux())
		if err != nil {
			b.Fatal(err)
		}
		if w.lease == nil {
			r.leave(w)
			return leases
		}
		leases = append(leases, w.lease)
	}
}

// BenchmarkIdle is Acquire and Release with nobody else.
func BenchmarkIdle(b *testing.B) {
	r := newRouter(fiftyBuilders()...)
	for b.Loop() {
		lease, err := r.Acquire(b.Context(), askLinux("kvm"), nil)
		if err != nil {
			b.Fatal(err)
		}
		lease.Release()
	}
}

// BenchmarkInputs adds 2,000 inputs to that.
func BenchmarkInputs(b *testing.B) {
	r := newRouter(fiftyBuilders()...)
	req := askLinux()
	for i := range 2000 {
		req.Inputs = append(req.Inputs, Input{r.Intern(fmt.Sprint("/nix/store/", i)), 1})
		r.NoteHeld(fmt.Sprintf("b%02d", i%50), req.Inputs[i].ID)
	}
	for b.Loop() {
		lease, err := r.Acquire(b.Context(), req, nil)
		if err != nil {
			b.Fatal(err)
		}
		lease.Release()
	}
}

// BenchmarkQueue is one build that ends and one that comes while 10,000 wait, in
// lanes of as many principals as named.
func BenchmarkQueue(b *testing.B) {
	for _, principals := range []int{1, 40, 1000} {
		b.Run(fmt.Sprint(principals, "principals"), func(b *testing.B) { benchmarkQueue(b, principals) })
	}
}

func benchmarkQueue(b *testing.B, principals int) {
	r := New(Options{QueueLimit: 10_001})
	r.SetBuilders(fiftyBuilders())
	leases := fill(b, r)
	next := 0
	enter := func() *waiter {
		req := askLinux()
		req.Principal = fmt.Sprint("p", next%principals)
		next++
		w, err := r.enter(req)
		if err != nil {
			b.Fatal(err)
		}
		return w
	}
	var queue []*waiter
	for range 10_000 {
		queue = append(queue, enter())
	}
	for b.Loop() {
		leases[0].Release()
		leases = append(leases[1:], queue[0].lease)
		queue = append(queue[1:], enter())
	}
}

// BenchmarkReload replaces 50 builders while 10,000 requests of 40 principals wait.
func BenchmarkReload(b *testing.B) {
	r := newRouter(fiftyBuilders()...)
	fill(b, r)
	for i := range 10_000 {
		req := askLinux()
		req.Principal = fmt.Sprint("p", i%40)
		if _, err := r.enter(req); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		r.SetBuilders(fiftyBuilders())
	}
}
