package metrics

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkOperation is what each message of each client costs more.
func BenchmarkOperation(b *testing.B) {
	m := New("test")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Operation("QueryPathInfo", time.Millisecond, false)
		}
	})
}

// BenchmarkScrape is a scrape of a hundred builders, without what it takes to ask them.
func BenchmarkScrape(b *testing.B) {
	m := New("test")
	var names []string
	var s State
	for i := range 100 {
		names = append(names, fmt.Sprint("builder", i))
		s.Builders = append(s.Builders, Builder{Name: names[i], Load: &Load{}})
	}
	m.SetLabels(names, []string{"x86_64-linux"})
	for _, name := range names {
		m.Build("x86_64-linux", name, BuildBuilt)
	}
	m.Watch(func() State { return s })
	for b.Loop() {
		if _, err := m.registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
