// Package e2e shows the project's guarantees with real Nix and real OpenSSH:
// the tests run the binary of NIXBASTION_BIN in a bed of internal/testbed.
//
//	make build
//	NIXBASTION_BIN=$PWD/bin/nixbastion go test ./internal/e2e
//
// They need root and fail without it. One file is one subject. Hosts take seconds
// to come up, so what some tests need alike is a [common] world, which they use
// one after another. Tests named Soak run the same scenes with the counts that a
// release must stand; they run when NIXBASTION_SOAK is 1.
//
// Tests whose names begin with S and a number show a row of the table of what
// guides to remote builders promise: TestS16 shows what they say of maxJobs.
package e2e
