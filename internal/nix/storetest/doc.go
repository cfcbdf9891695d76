// Package storetest has what tests need of a [nix.Store]: [Memory], a store in
// memory, and [Run], the suite that every store passes, whatever lies between
// the test and the bytes. [NewObject] and [NewSource] make paths to put there.
package storetest
