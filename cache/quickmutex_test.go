package cache

import (
	"sync"
	"testing"
	"time"
)

// Guards against two holders, and against one who is never let in behind a holder
// that takes longer than anybody looks.
func TestQuickMutexHasOneHolder(t *testing.T) {
	var m quickMutex
	var all sync.WaitGroup
	count := 0
	for range 8 {
		all.Go(func() {
			for i := range 200 {
				m.Lock()
				before := count
				if i%100 == 0 {
					time.Sleep(time.Millisecond)
				}
				count = before + 1
				m.Unlock()
			}
		})
	}
	all.Wait()
	if count != 8*200 {
		t.Errorf("counted %d", count)
	}
}
