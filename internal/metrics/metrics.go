package metrics

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// namespace is how the name of every metric of ours begins.
const namespace = "nixbastion"

// Metrics are the numbers of one proxy, in a registry of their own. Its methods may be
// called from any goroutine, and a nil *Metrics counts nothing. Make one with [New].
type Metrics struct {
	registry *prometheus.Registry
	state    *stateCollector
	events
	labels labels
}

// New makes a registry with all metrics. The version is the program's own.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), events: newEvents()}
	m.state = &stateCollector{labels: &m.labels}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(version), m.state,
	)
	m.registry.MustRegister(m.events.collectors()...)
	return m
}

// buildInfo is always 1: what it tells is in its labels, which do not change while the
// program runs.
func buildInfo(version string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the labels say which version runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
}

// Watch has every scrape ask source how things stand. It is called from several
// goroutines and must not wait for a peer. Nil: there is nobody to ask any more.
func (m *Metrics) Watch(source func() State) {
	if m != nil {
		m.state.watch(source)
	}
}
