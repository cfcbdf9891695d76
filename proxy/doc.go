// Package proxy is one client connection from accept to close.
//
// Begin with [Proxy], which ties the parts together, then follow a build:
//
//	front.go     SSH: who is it, and what does he ask for (exec)
//	command.go   is it a protocol we speak (else: probe.go, talk.go)
//	session.go   the client's store: queries and uploads, answered by the cache
//	targets.go   what a client wants realised, and what that needs
//	build.go     the one place where route, upstream and cache meet
//	inflight.go  equal builds run once, for all who wait
//	push.go      inputs from the cache to the builder
//	fetch.go     outputs from the builder to the cache
//	buildlog.go  one writer, many followers
//	found.go     what only builders hold: who is asked for it, and when
//
// What narrows a build or an upload has its own file: signatures.go says what is
// believed of a path, buildlimits.go what a client's limits end, holders.go where
// outputs are checked and repaired, lookaround.go which builders are there. Beside
// found.go, found_fetch.go takes a path from a builder, found_misses.go remembers what
// builders lack, and found_valid.go answers about many paths at once.
//
// How a builder stands besides being up or down: drain.go is the admin's word, wake.go
// brings up what sleeps and wake_idle.go puts it to sleep, grace.go is for those that
// are not up yet.
//
// Beside it, bastion.go carries jumps to other hosts, ledger.go remembers builds and
// their logs, and talk.go answers the questions of people about all of it.
//
// Place, slot, session and client are four lifetimes. A lease holds a slot until
// the builder replied; the session to the builder lives until the last output is
// in the cache; a build lives as long as one client waits for it; a client may
// take as long as it likes to fetch what it got.
//
// How builders are ranked is not known here, and bytes are not parsed here.
package proxy
