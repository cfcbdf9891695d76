package proxy

import "sync"

// copies counts, by builder, the builds that have ended and whose outputs are still
// on their way into the cache. The zero value is ready.
type copies struct {
	mu sync.Mutex // guards what follows
	n  map[string]int
}

// begin counts one until the function that it returns is called.
func (c *copies) begin(builder string) (end func()) {
	c.add(builder, 1)
	return func() { c.add(builder, -1) }
}

func (c *copies) add(builder string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	if c.n[builder] += n; c.n[builder] == 0 {
		delete(c.n, builder)
	}
}

func (c *copies) of(builder string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[builder]
}
