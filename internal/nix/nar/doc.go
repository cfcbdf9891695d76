// Package nar reads and writes NARs, the archive format in which Nix sends and
// hashes store objects.
//
// Begin with [NewReader]: it hands on the bytes of one NAR from a longer stream
// and refuses what Nix refuses. [Validator] is the same check as an io.Writer.
// [SingleFile] and [WriteRegular] are for NARs of one file, [Pack] for trees.
//
// The grammar, where every token is a string (length as 64-bit little-endian
// number, bytes, zero padding to a multiple of 8) and contents is one too:
//
//	archive   = "nix-archive-1" node
//	node      = "(" "type" ( regular | symlink | directory ) ")"
//	regular   = "regular" [ "executable" "" ] "contents" contents
//	symlink   = "symlink" "target" target
//	directory = "directory" { "entry" "(" "name" name "node" node ")" }
//
// For a given tree there is exactly one valid NAR. The package knows no store
// paths and hashes nothing.
package nar

// The limits of Nix 2.36, in bytes; releases before have none. A name or target
// beyond them could not be unpacked on Linux anyway.
const (
	MaxName   = 255
	MaxTarget = 4095
	// MaxDepth is how many nodes may lie inside each other, the root included.
	MaxDepth = 64
)

// Kind tells the three kinds of nodes apart.
type Kind uint8

// The kinds.
const (
	Regular Kind = iota + 1
	Symlink
	Directory
)

// Node is a file, symlink or directory as a [Validator] comes across it.
type Node struct {
	// Path is relative to the root, with slashes; "" is the root itself.
	Path       string
	Kind       Kind
	Executable bool
	// Size is the length of a regular file's contents in bytes.
	Size uint64
	// Target is where a symlink points.
	Target string
}
