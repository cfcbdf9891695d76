// Package e2e shows the project's guarantees with real Nix and real OpenSSH:
// the tests run the binary of NIXBASTION_BIN in a bed of internal/testbed.
//
//	make build
//	NIXBASTION_BIN=$PWD/bin/nixbastion go test ./internal/e2e
//
// They need root and fail without it. One file is one subject; what the tests
// of a file share is a bed, as hosts take seconds to come up. Tests named Soak
// run the same scenes with the counts that a release must stand; they run when
// NIXBASTION_SOAK is 1.
package e2e
