// Package simulate carries a trace of wanted builds through a fleet on a virtual
// clock, once for each way of placing them: by the router of this project, and by
// models of what people use instead. Nothing sleeps, and equal traces give equal
// results.
//
// Begin with [Synthetic] or [Read] for a [Trace], and [Compare] for a table.
//
// # What is modelled
//
//	client    asks for builds; one is ready when its dependencies are back there.
//	          Its hook connects for one build after another (client.go)
//	policy    where a ready build goes, and when (plain.go, balance.go, hub.go, ours.go)
//	machine   a link that carries one upload after another, slots, and a store that
//	          keeps what it has (machine.go)
//
// Protocols, load, failures and the speed of disks are not. The models of others
// are kinder than the programs: a balancer knows which machines can run a build,
// and what two clients send to one machine at the same time travels once.
package simulate
