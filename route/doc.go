// Package route decides where and when a build runs. It knows builders as plain
// values, keeps the queue and the places that are taken, learns how long builds
// take, and says why it decides as it does. It does no I/O: whoever holds connections
// tells it what is up, and what came of its leases.
//
// Begin with [Router]: SetBuilders gives it the builders, Acquire waits for a place
// on one of them and returns a [Lease], whose holder says Transferred, Began and
// Built, or Release. Explain ranks a request with the code that decides, and takes
// nothing.
//
// # How a request is placed
//
//	match      systems, features, mandatory features and resources (match.go)
//	health     a builder that is down, drained, overloaded or suspended is passed
//	           over (health.go, breaker.go)
//	estimate   how long it will take, from builds of its name (estimate.go)
//	order      classes, then who was served least, then what most waits for
//	           (order.go)
//	finish     the builder where it is done first: wait for a slot, inputs that
//	           must be brought, the build itself (finish.go)
//	plan       all that in the order of the queue, each request counting those
//	           before it (plan.go)
//
// A request may wait for a busy builder although another is free, if it will be done
// there earlier. The plan is made anew whenever a place becomes free, a builder
// changes, or a build takes longer than was thought.
//
// Nobody starves: who has waited for longer than Options.StarveAfter goes first.
//
// # Locks
//
// One mutex guards the router. The table of paths and the estimates have their own
// below it. None is held while a caller's function runs.
package route
