// Package serve speaks Nix's serve protocol, the one of `nix-store --serve` and
// ssh:// stores, in both directions.
//
// Begin with [Serve], which answers a client from a [nix.Store], and
// [NewClient], whose [Client] is a [nix.Store] that asks such a program. The flow
// of the protocol is told in protocol.go. Each command has one file in which
// reader and writer stand together, with the same name as in the package of the
// worker protocol where that has it too; what both protocols say alike is read
// and written by [nixbastion/internal/nix/wire].
//
// The protocol has no words for a log or an error: both go to the standard error
// of the program. A client therefore learns no more than that its session ended,
// and who owns the connection reads the reason.
//
// The package decides nothing: who may do what, and what a path is worth, is
// the Store's matter. It opens no connections.
package serve
