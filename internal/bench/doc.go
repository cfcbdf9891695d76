// Command bench compares nixbastion with what people have today, on real Nix
// hosts of internal/testbed: a client that goes straight to the builder's sshd
// and nix-daemon, one that goes through HAProxy, and one that goes through a hub
// (a nix-daemon with builders of its own). One trivial build is compared with a proxy
// without an audit log, too. It prints a table, and whether the project's targets are
// met:
//
//	make bench
//	NIXBASTION_BIN=$PWD/bin/nixbastion go run ./internal/bench -only ping,build -rounds 9
//
// With several builders and clients it compares where builds go and when they are
// done, and the models of internal/simulate with real hosts:
//
//	NIXBASTION_BIN=$PWD/bin/nixbastion go run ./internal/bench fleet -story mixed
//
// # What makes it fair
//
// All ways begin at the same client and end at the same builder, and take
// turns: every round runs each of them. Clients are unconfigured, so they use
// the ciphers and key exchanges that they and the other side prefer. All stores
// are in memory, the proxy's too (with -disk: all on disk). What must be new is
// new in every run, by a name or bytes that were never used before. The ratio is
// one of medians, over the rounds in which both ways took part.
//
// What others do on the machine meanwhile is measured and shown, since it moves
// wall time; CPU seconds hardly move.
package main
