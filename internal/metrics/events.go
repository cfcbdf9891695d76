package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// events are counted when they happen. Those with a fixed set of results have their
// counters from the start: a rate needs a first sample of 0.
type events struct {
	connections   results[ConnectionResult]
	logins        results[LoginResult]
	jumps         results[JumpResult]
	buildRequests results[RequestResult]
	reloads       results[ReloadResult]

	reloadGood prometheus.Gauge // whether the last reload was taken
	reloadedAt prometheus.Gauge

	// By builder or system: guarded by labels.
	builds        *prometheus.CounterVec
	attempts      *prometheus.CounterVec
	buildDuration *prometheus.HistogramVec
	queueWait     *prometheus.HistogramVec

	operations      *prometheus.HistogramVec
	operationErrors *prometheus.CounterVec
	ops             *ops
}

// Histograms have few buckets: each is a series of its own.
var (
	// operationBuckets go from a look-up in memory to an upload of gigabytes.
	operationBuckets = []float64{0.0005, 0.002, 0.01, 0.05, 0.25, 1, 5, 30, 300, 3600}
	// buildBuckets go from a trivial build to a browser.
	buildBuckets = []float64{0.1, 0.5, 2, 10, 30, 60, 300, 900, 1800, 3600, 4 * 3600, 12 * 3600}
	// waitBuckets go from a free slot to a day's queue.
	waitBuckets = []float64{0.01, 0.1, 1, 5, 15, 60, 300, 900, 1800, 3600, 4 * 3600}
)

func newEvents() events {
	operations := newHistogram("operation_duration_seconds", "How long operations of clients took, from their first byte to the last of the answer: uploads and builds as long as they last.", operationBuckets, "op")
	operationErrors := newCounter("operation_errors_total", "Operations that were answered with an error. Builds that fail are answers, and none.", "op")
	e := events{
		connections:   newResults[ConnectionResult]("ssh_connections_total", "Connections that clients opened: admitted, or refused for want of room.", connectionResults[:]),
		logins:        newResults[LoginResult]("ssh_logins_total", "Ends of logins: success, refused after a key was shown, or failed before that.", loginResults[:]),
		jumps:         newResults[JumpResult]("ssh_jumps_total", "Jumps that clients asked for: opened, refused by the policy or for want of room, or failed to reach their target.", jumpResults[:]),
		buildRequests: newResults[RequestResult]("build_requests_total", "Builds that clients asked for: started, joined to an equal one that runs, or known, since the outputs are here.", requestResults[:]),
		reloads:       newResults[ReloadResult]("policy_reloads_total", "Reloads of the policy: success, or refused for mistakes.", reloadResults[:]),
		reloadGood:    newGauge("policy_last_reload_successful", "Whether the policy file was taken when it was last read (1) or refused (0)."),
		reloadedAt:    newGauge("policy_last_reload_success_timestamp_seconds", "When a policy was last taken, in seconds since 1970."),
		builds:        newCounter("builds_total", "Builds that ended, by how they did; builder is empty where none gave the answer.", "system", "builder", "result"),
		attempts:      newCounter("build_attempts_total", "Attempts at builds on a builder, by how they ended: answered, or why another builder was looked for.", "builder", "result"),
		buildDuration: newHistogram("build_duration_seconds", "How long builders took to build, without queue and transfers.", buildBuckets, "system"),
		queueWait:     newHistogram("queue_wait_seconds", "How long builds waited for a slot that got one.", waitBuckets, "system"),
		operations:    operations, operationErrors: operationErrors,
		ops: &ops{durations: operations, errors: operationErrors, known: map[string]*op{}},
	}
	e.loaded(time.Now())
	return e
}

func (e *events) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		e.connections.vec, e.logins.vec, e.jumps.vec, e.buildRequests.vec, e.reloads.vec, e.reloadGood, e.reloadedAt,
		e.builds, e.attempts, e.buildDuration, e.queueWait, e.operations, e.operationErrors,
	}
}

func newCounter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
}

func newGauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
}

func newHistogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}, labels)
}

// results are the counters of an event, one for each of its results.
type results[R ~uint8] struct {
	vec *prometheus.CounterVec
	of  []prometheus.Counter // by result
}

func newResults[R ~uint8](name, help string, words []string) results[R] {
	r := results[R]{vec: newCounter(name, help, "result")}
	for _, word := range words {
		r.of = append(r.of, r.vec.WithLabelValues(word))
	}
	return r
}

func (r *results[R]) count(result R) { r.of[result].Inc() }

// loaded notes that a policy was taken.
func (e *events) loaded(at time.Time) {
	e.reloadGood.Set(1)
	e.reloadedAt.Set(float64(at.UnixMilli()) / 1000)
}

// Connection counts a connection from a client.
func (m *Metrics) Connection(result ConnectionResult) {
	if m != nil {
		m.connections.count(result)
	}
}

// Login counts the end of a login.
func (m *Metrics) Login(result LoginResult) {
	if m != nil {
		m.logins.count(result)
	}
}

// Jump counts a jump that a client asked for.
func (m *Metrics) Jump(result JumpResult) {
	if m != nil {
		m.jumps.count(result)
	}
}

// BuildRequest counts a build that a client asked for.
func (m *Metrics) BuildRequest(result RequestResult) {
	if m != nil {
		m.buildRequests.count(result)
	}
}

// Reload counts a reload of the policy.
func (m *Metrics) Reload(err error) {
	switch {
	case m == nil:
	case err != nil:
		m.reloads.count(ReloadRefused)
		m.reloadGood.Set(0)
	default:
		m.reloads.count(ReloadSuccess)
		m.loaded(time.Now())
	}
}

// Build counts a build that ended. The builder is empty if none gave the answer.
func (m *Metrics) Build(system, builder string, result BuildResult) {
	m.labelled(func(l *labels) {
		if builder != "" {
			builder = l.builder(builder)
		}
		m.builds.WithLabelValues(l.system(system), builder, buildResults[result]).Inc()
	})
}

// Attempt counts an attempt at a build that ended.
func (m *Metrics) Attempt(builder string, result AttemptResult) {
	m.labelled(func(l *labels) { m.attempts.WithLabelValues(l.builder(builder), attemptResults[result]).Inc() })
}

// BuildDuration observes how long a builder took to build.
func (m *Metrics) BuildDuration(system string, took time.Duration) {
	m.labelled(func(l *labels) { m.buildDuration.WithLabelValues(l.system(system)).Observe(took.Seconds()) })
}

// QueueWait observes how long a build waited for the slot that it got.
func (m *Metrics) QueueWait(system string, took time.Duration) {
	m.labelled(func(l *labels) { m.queueWait.WithLabelValues(l.system(system)).Observe(took.Seconds()) })
}

// Operation observes an operation of a protocol, by its name there, and whether it was
// answered with an error. It is called for every message of every client.
func (m *Metrics) Operation(name string, took time.Duration, failed bool) {
	if m == nil {
		return
	}
	o := m.ops.named(name)
	o.duration.Observe(took.Seconds())
	if failed {
		o.errors.Inc()
	}
}

// maxOps bounds the operations that are told apart. The protocols have about fifty.
const maxOps = 64

// ops are the operations that were seen.
type ops struct {
	durations *prometheus.HistogramVec
	errors    *prometheus.CounterVec

	mu    sync.RWMutex // guards what follows
	known map[string]*op
}

// isOpName reports whether it is a word as the protocols name their operations.
func isOpName(name string) bool {
	for _, c := range []byte(name) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return name != "" && len(name) <= 64
}

type op struct {
	duration prometheus.Observer
	errors   prometheus.Counter
}

func (o *ops) named(name string) *op {
	o.mu.RLock()
	known := o.known[name]
	o.mu.RUnlock()
	if known != nil {
		return known
	}
	return o.add(name)
}

func (o *ops) add(name string) *op {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.known) >= maxOps-1 || !isOpName(name) {
		name = Other
	}
	known := o.known[name]
	if known == nil {
		known = &op{duration: o.durations.WithLabelValues(name), errors: o.errors.WithLabelValues(name)}
		o.known[name] = known
	}
	return known
}
