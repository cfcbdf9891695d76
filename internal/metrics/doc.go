// Package metrics is what the proxy counts, in the form that Prometheus reads.
//
// Begin with [Metrics]. What happens is counted by its methods, each named for the
// event (events.go); how things stand is asked for when somebody scrapes ([State],
// collector.go), so that nothing is kept twice. The HTTP side is [Server].
//
// The number of series is bounded by the policy: labels are builder, system, op and
// result, never a principal, an address or a text of a peer's. Builders and systems
// that the policy does not name are counted as [Other], and lose their series when a
// reload removes them (labels.go).
//
// docs/monitoring has a table of all metrics, a dashboard and alert rules, which the
// tests of this package compare with what is exported. Nothing here knows who counts.
package metrics
