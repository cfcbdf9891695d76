// Package route decides where a build runs. It knows builders as plain values,
// keeps the queue and the places that are taken, and says why it decides as it
// does. It does no I/O: whoever holds connections tells it what is up.
//
// Begin with [Router]: SetBuilders gives it the builders, Acquire waits for a
// place on one of them and returns a [Lease], Release gives the place back.
// Explain ranks a request with the code that decides, and takes nothing.
//
// # How a request is placed
//
//	match     systems, features and mandatory features, as Nix does it (match.go)
//	health    a builder that is down or suspended is passed over (health.go)
//	slots     of the builder and of the principal (router.go)
//	rule      the best of those that are left (rule.go)
//	queue     first come, first served, among those that can be placed (queue.go)
//
// Every free slot goes to the earliest request that can use it. So a request
// that nobody can serve now holds up nobody else, and none starves: once it is
// the earliest of those that its builders could run, the next slot is its own.
//
// # Locks
//
// One mutex guards the router. The table of paths has its own below it. Neither
// is held while a caller's function runs, except for [Rule].
package route
