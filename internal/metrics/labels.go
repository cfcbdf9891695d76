package metrics

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Other is the label of builders, systems and operations that are not told apart:
// those that the policy does not name, or not any more.
const Other = "other"

// labels are the builders and systems that the policy names now. Whoever counts by
// them holds mu for reading until it has counted, so that no series comes back
// behind the reload that removed it.
type labels struct {
	mu       sync.RWMutex // guards what follows
	builders map[string]bool
	systems  map[string]bool
}

func (l *labels) builder(name string) string { return oneOf(l.builders, name) }
func (l *labels) system(name string) string  { return oneOf(l.systems, name) }

func oneOf(known map[string]bool, name string) string {
	if known[name] {
		return name
	}
	return Other
}

// bySystem sums by the systems that are told apart, all of which it has.
func (l *labels) bySystem(n map[string]int) map[string]int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	sums := make(map[string]int, len(l.systems)+1)
	for system := range l.systems {
		sums[system] = 0
	}
	for system, n := range n {
		sums[l.system(system)] += n
	}
	return sums
}

// labelled has something counted by builder or system.
func (m *Metrics) labelled(count func(*labels)) {
	if m == nil {
		return
	}
	m.labels.mu.RLock()
	defer m.labels.mu.RUnlock()
	count(&m.labels)
}

// SetLabels says which builders and systems there are. The series of all others end;
// what happens there from now on is counted as [Other].
func (m *Metrics) SetLabels(builders, systems []string) {
	if m == nil {
		return
	}
	l := &m.labels
	l.mu.Lock()
	defer l.mu.Unlock()
	oldBuilders, oldSystems := l.builders, l.systems
	l.builders, l.systems = setOf(builders), setOf(systems)
	for name := range oldBuilders {
		if !l.builders[name] {
			forget(prometheus.Labels{"builder": name}, m.builds, m.attempts)
		}
	}
	for name := range oldSystems {
		if !l.systems[name] {
			forget(prometheus.Labels{"system": name}, m.builds, m.buildDuration, m.queueWait)
		}
	}
	for name := range l.builders {
		for _, result := range attemptResults {
			m.attempts.WithLabelValues(name, result)
		}
	}
	for name := range l.systems {
		m.buildDuration.WithLabelValues(name)
		m.queueWait.WithLabelValues(name)
	}
}

// partial is a vector of metrics of any kind.
type partial interface {
	DeletePartialMatch(prometheus.Labels) int
}

func forget(match prometheus.Labels, vectors ...partial) {
	for _, v := range vectors {
		v.DeletePartialMatch(match)
	}
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}
