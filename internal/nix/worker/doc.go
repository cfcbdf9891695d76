// Package worker speaks Nix's worker protocol, the one of `nix-daemon --stdio`
// and ssh-ng:// stores, in both directions.
//
// Begin with [Serve], which answers a client from a [nix.Store], and
// [NewClient], whose [Client] is a [nix.Store] that asks a daemon. The flow of
// the protocol is told in protocol.go. Each message and each group of operations
// has one file in which reader and writer stand together, so that a difference
// between versions is seen once.
//
// The package decides nothing: who may do what, and what a path is worth, is
// the Store's matter. It opens no connections.
package worker
