// Package wire reads and writes the primitive values of Nix's remote-store
// protocols: integers of 8 bytes, strings padded to 8 bytes, sets, and framed
// streams.
//
// Begin with [Reader] and [Writer]. Both remember their first error: a codec
// reads or writes a whole message field by field and asks Err once. What a peer
// sends is hostile: every length is compared with a limit that the caller
// gives, and memory grows with the bytes that arrived, never with those that
// were announced.
//
// The parts of messages that both protocols have are here too, each reader and
// writer once: derivations, path infos, results of builds, texts for people. So
// is what both kinds of sessions rest on: [Caller], the asking end of one, and
// [Limits]. The package knows no whole message and no version.
package wire
