package cache

import (
	"encoding/binary"
	"io"
	"runtime"
	"testing"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/nar"
)

// largeSize is more than any buffer in the way of a NAR.
const largeSize = 256 << 20

// Guards against a NAR that is held in memory: what passes is hundreds of times
// what may be allocated, on the way in, while it is followed, and on the way out.
func TestMemoryDoesNotGrowWithTheNAR(t *testing.T) {
	c := openCache(t, Options{Dir: t.TempDir()}) // on disk: memory files are memory
	info := largeInfo(t)
	heap := &heapWatch{}
	heap.begin()
	a, err := c.Announce(info, in("team"))
	if err != nil {
		t.Fatal(err)
	}
	follower, err := c.OpenNar(t.Context(), "team", info.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	followed := make(chan int64)
	go func() {
		n, _ := io.Copy(io.Discard, follower)
		followed <- n
	}()
	if _, err := a.Fill(t.Context(), io.TeeReader(largeNAR(), heap)); err != nil {
		t.Fatal(err)
	}
	if n := <-followed; n != int64(info.NarSize) {
		t.Errorf("the follower got %d bytes", n)
	}
	flushed(t, c)
	r, err := c.OpenNar(t.Context(), "team", info.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sum := nix.SHA256.New()
	n, err := io.CopyBuffer(io.MultiWriter(heap, sum), struct{ io.Reader }{r}, make([]byte, chunk))
	if err != nil || uint64(n) != info.NarSize || nix.SumHash(nix.SHA256, sum) != info.NarHash {
		t.Errorf("read %d bytes, others than were written or an error: %v", n, err)
	}
	const bound = 16 << 20
	if heap.looks < 20 || heap.most > heap.before+bound {
		t.Errorf("the heap grew from %d to %d bytes in %d looks", heap.before, heap.most, heap.looks)
	}
}

func largeNAR() io.Reader {
	r, w := io.Pipe()
	go func() { w.CloseWithError(nar.WriteRegular(w, false, largeSize, &countReader{})) }()
	return r
}

func largeInfo(t *testing.T) *nix.PathInfo {
	sum := nix.SHA256.New()
	n, err := io.Copy(sum, largeNAR())
	if err != nil {
		t.Fatal(err)
	}
	return &nix.PathInfo{Path: pathNamed("large"), NarHash: nix.SumHash(nix.SHA256, sum), NarSize: uint64(n)}
}

// countReader gives numbers, so that no part is like another.
type countReader struct{ next uint64 }

func (c *countReader) Read(p []byte) (int, error) {
	n := 0
	for ; n+8 <= len(p); n += 8 {
		binary.LittleEndian.PutUint64(p[n:], c.next)
		c.next++
	}
	if n == 0 {
		clear(p)
		return len(p), nil
	}
	return n, nil
}

// heapWatch looks at the heap after every 8 MiB that pass.
type heapWatch struct {
	before, most uint64
	passed       int
	looks        int
}

func (h *heapWatch) begin() {
	runtime.GC()
	h.before = heapAlloc()
}

func (h *heapWatch) Write(p []byte) (int, error) {
	h.passed += len(p)
	if h.passed >= 8<<20 {
		h.passed = 0
		h.looks++
		h.most = max(h.most, heapAlloc())
	}
	return len(p), nil
}

func heapAlloc() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
