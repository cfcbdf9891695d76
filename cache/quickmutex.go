package cache

import "sync"

// A quickMutex guards what is never held for long: nobody waits, reads or writes
// on disk under it. Whoever finds it locked looks again for some 20 microseconds
// before it goes to sleep, as its holder is about to be done. sync.Mutex does so
// only where no other goroutine waits to run, which a busy server always has: there
// sleepers pile up, and each is passed by for a millisecond before it has its turn.
type quickMutex struct{ sync.Mutex }

// quickLooks is after how many looks it sleeps, at about a nanosecond each.
const quickLooks = 20_000

// Lock locks m.
func (m *quickMutex) Lock() {
	for range quickLooks {
		if m.TryLock() {
			return
		}
	}
	m.Mutex.Lock()
}
