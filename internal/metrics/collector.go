package metrics

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// stateCollector makes metrics of a [State] at each scrape.
type stateCollector struct {
	source atomic.Pointer[func() State]
	labels *labels
}

func (c *stateCollector) watch(source func() State) {
	if source == nil {
		c.source.Store(nil)
		return
	}
	c.source.Store(&source)
}

// Describe lists all that Collect can give.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range global {
		ch <- g.desc
	}
	for _, b := range perBuilder {
		ch <- b.desc
	}
	ch <- queueLength
	ch <- refusals
	for _, l := range perLoad {
		ch <- l.desc
	}
}

// Collect gives nothing while there is nobody to ask.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	source := c.source.Load()
	if source == nil {
		return
	}
	s := (*source)()
	for _, g := range global {
		ch <- g.metric(&s)
	}
	for system, n := range c.labels.bySystem(s.Queue.Length) {
		ch <- prometheus.MustNewConstMetric(queueLength, prometheus.GaugeValue, float64(n), system)
	}
	for result, n := range refusalsBy(s.Refusals) {
		ch <- prometheus.MustNewConstMetric(refusals, prometheus.CounterValue, float64(n), result)
	}
	for i := range s.Builders {
		collectBuilder(ch, &s.Builders[i])
	}
}

func collectBuilder(ch chan<- prometheus.Metric, b *Builder) {
	for _, m := range perBuilder {
		ch <- m.metric(b, b.Name)
	}
	if b.Load == nil {
		return
	}
	for _, m := range perLoad {
		ch <- m.metric(b.Load, b.Name)
	}
}

// reading is a metric that is read off something.
type reading[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*T) float64
}

func (r reading[T]) metric(of *T, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(r.desc, r.kind, r.value(of), labels...)
}

func descOf(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+name, help, slices.Clip(labels), nil)
}

// read makes a reading. What is counted up has a name that ends in _total.
func read[T any](name, help string, value func(*T) float64, labels ...string) reading[T] {
	kind := prometheus.GaugeValue
	if strings.HasSuffix(name, "_total") {
		kind = prometheus.CounterValue
	}
	return reading[T]{descOf(name, help, labels...), kind, value}
}

func yes(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func num[N int | int64](n N) float64 { return float64(n) }
