// Package nix holds the nouns of Nix's remote-store protocols and the one
// interface that everything which answers them implements.
//
// Begin with [Store]: a client's session, a daemon on a builder and a store in
// memory all look the same through it. [StorePath], [Hash], [PathInfo],
// [BasicDerivation] and [BuildResult] are what its methods speak of. Only
// parsers and formulas make a StorePath, so one that exists is well formed.
//
// The package does no I/O and knows no wire format: bytes are the business of
// the packages wire, nar and worker below it.
package nix
