package proxy

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkQueryPathInfo asks for paths that the cache has, with fifty clients
// that ask at once and without a pause. What it reports as p99 and p50 is the
// proxy's part: from when it has read a request until it has flushed the reply.
func BenchmarkQueryPathInfo(b *testing.B) {
	const clients, paths = 50, 1000
	l := newLab(b)
	files := make([]labFile, paths)
	for i := range files {
		name := fmt.Sprintf("path-%d", i)
		files[i] = newLabFile(labPath(name), name)
	}
	if err := l.client("alice").upload(b.Context(), files...); err != nil {
		b.Fatal(err)
	}
	asking, ends := make([]*labClient, clients), make([]*answering, clients)
	for i := range asking {
		near, far := socketPair(b)
		ends[i] = &answering{Conn: far}
		asking[i] = l.clientOn("alice", near, ends[i])
	}
	b.ResetTimer()
	var all sync.WaitGroup
	for i, c := range asking {
		ends[i].took = nil
		all.Go(func() {
			for n := i; n < b.N; n += clients {
				if _, err := c.QueryPathInfo(b.Context(), files[n%paths].info.Path); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.StopTimer()
	var took []time.Duration
	for _, end := range ends {
		took = append(took, end.took...)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
}

// answering is the proxy's end of a connection. A request comes in one piece here
// and its reply leaves in one; both are moved by one goroutine.
type answering struct {
	net.Conn
	asked time.Time
	took  []time.Duration
}

func (a *answering) Read(p []byte) (int, error) {
	n, err := a.Conn.Read(p)
	a.asked = time.Now()
	return n, err
}

func (a *answering) Write(p []byte) (int, error) {
	n, err := a.Conn.Write(p)
	a.took = append(a.took, time.Since(a.asked))
	return n, err
}

// socketPair returns the ends of a connection that the kernel buffers.
func socketPair(b *testing.B) (near, far net.Conn) {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("unix", l.Addr().String()); err != nil {
		b.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}
